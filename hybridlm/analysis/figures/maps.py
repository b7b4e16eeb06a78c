"""Heat maps: accuracies, heads over training, attention over text."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from hybridlm.analysis.figures.style import INK, MAP, WIDTH, Figure, distinct, finite, short, styled
from hybridlm.analysis.measurements import newest, newest_heads
from hybridlm.analysis.tables import Table, records_of

_ROWS = 24  # rows of a map that have labels of their own
_SHAPES = 400  # cells that are drawn as shapes


@styled
def heat_map(
    table: Table,
    *,
    x: str,
    y: str,
    value: str,
    percent: bool = True,
    width: float | None = None,
) -> Figure:
    """Values by two columns, as a map with a number in each cell.

    Args:
      table: a row for each cell; of several with the same x and y the mean is shown.
      x, y, value: columns. Rows of the map stand in the order of `distinct`, the first at the top.
      percent: values are shares, shown in per cent on a scale from 0 to 1; otherwise the scale is
        from the smallest to the largest.
    """
    columns, lines, cells = _pivot(records_of(table), x, y, value)
    width = width or min(7.0, max(3.6, 1.9 + 0.62 * len(columns)))
    figure = Figure(figsize=(width, 1.2 + 0.34 * len(lines)), layout="constrained")
    axes = figure.subplots()
    low, high = (0, 1) if percent else (None, None)
    image = _cells(axes, cells, low, high)
    low, high = image.get_clim()
    for (row, column), number in np.ndenumerate(cells):
        if finite(float(number)):
            dark = (number - low) / (high - low or 1) < 0.6
            shown = f"{100 * number:.0f}" if percent else f"{number:.3g}"
            style: dict[str, Any] = dict(ha="center", va="center", fontsize=9)
            # Not INK, which turns light where the reader's scheme is dark.
            axes.text(
                column + 0.5, row + 0.5, shown, color="#ffffff" if dark else "#111111", **style
            )
    axes.set_xticks(
        [i + 0.5 for i in range(len(columns))],
        [f"{c:,}" if isinstance(c, int) else str(c) for c in columns],
    )
    axes.set_yticks([i + 0.5 for i in range(len(lines))], [str(line) for line in lines])
    _frame(axes)
    axes.set(xlabel=_title(x), ylabel=_title(y))
    _bar(figure, axes, image, percent, _title(value))
    return figure


def needle_map(table: Table, *, width: float | None = None) -> Figure:
    """Accuracy of the needle by depth and length.

    Args:
      table: columns length, depth (per cent of the text before the needle) and accuracy, as
        `Run.by_depth()`. Of several steps and weights, those of `newest` are shown.
    """
    rows = newest([r for r in records_of(table) if r.get("task", "needle") == "needle"])
    rows = [{**r, "depth of the needle": f"{r['depth']:g}%"} for r in sorted(rows, key=_depth)]
    return heat_map(rows, x="length", y="depth of the needle", value="accuracy", width=width)


def task_map(table: Table, *, width: float | None = None) -> Figure:
    """Accuracy by task and length, as `Run.evaluations()` has them; those of `newest` are shown.

    An accuracy that is not finite has an empty cell.
    """
    rows = [r for r in records_of(table) if "accuracy" in r]
    rows = newest([r for r in rows if r.get("figure", "accuracy") == "accuracy"])
    return heat_map(rows, x="length", y="task", value="accuracy", width=width)


@styled
def head_map(table: Table, *, score: str = "mass", width: float = WIDTH) -> Figure:
    """A score of every attention head over training: a row for each head, a column for each step.

    Rows are ordered by layer, the lowest layer at the bottom, and lines part the layers. Where the
    map has one step, it has a row for each layer and a column for each head.

    Args:
      table: columns step, layer, head and the score, as `Run.probes("retrieval_heads")` (mass, copy),
        "entropy" (entropy) and "induction_heads". Of a head that was measured several times at a
        step, the last row counts (`newest_heads`).
    """
    rows = newest_heads([r for r in records_of(table) if finite(r.get(score))])
    steps = distinct([r["step"] for r in rows])
    top = max((r[score] for r in rows), default=1.0)
    low, high = 0.0, 1.0 if 0.5 < top <= 1 else top or 1.0
    if len(steps) <= 1:
        _, layers, cells = _pivot(rows, "head", "layer", score)
        figure = Figure(figsize=(width, 1.3 + 0.3 * max(2, len(layers))), layout="constrained")
        axes = figure.subplots()
        image = _cells(axes, cells[::-1], low, high)
        _numbered(axes, layers[::-1], cells.shape[1])
        axes.set(xlabel="head", ylabel="layer")
        _bar(figure, axes, image, False, score)
        return figure
    heads = sorted({(r["layer"], r["head"]) for r in rows})
    named = [{**r, "of": (r["layer"], r["head"])} for r in rows]
    _, _, cells = _pivot(named, "step", "of", score, steps, heads[::-1])
    height = 1.2 + min(8.0, max(1.4, 0.22 * len(heads)))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    image = _cells(axes, cells, low, high)
    order = heads[::-1]
    if len(order) <= _ROWS:
        ticks = {i: f"{layer}.{head}" for i, (layer, head) in enumerate(order)}
    else:
        middle: dict[int, list[int]] = {}
        for i, (layer, _) in enumerate(order):
            middle.setdefault(layer, []).append(i)
        every = math.ceil(len(middle) / _ROWS)
        ticks = {
            sum(of) / len(of): str(layer)
            for n, (layer, of) in enumerate(middle.items())
            if n % every == 0
        }
    axes.set_yticks([i + 0.5 for i in ticks], list(ticks.values()))
    for i, (one, other) in enumerate(zip(order, order[1:])):
        if one[0] != other[0]:
            axes.axhline(i + 1, color="#ffffff", linewidth=1)
    shown = sorted({round(i * (len(steps) - 1) / 4) for i in range(5)})
    axes.set_xticks([i + 0.5 for i in shown], [short(steps[i]) for i in shown])
    _frame(axes)
    axes.set(xlabel="step", ylabel="layer.head" if len(order) <= _ROWS else "layer")
    _bar(figure, axes, image, False, {"mass": "attention on the needle"}.get(score, score))
    return figure


@styled
def attention_map(
    weights: Any,
    queries: Sequence[str],
    keys: Sequence[str] | None = None,
    *,
    title: str = "",
    width: float = WIDTH,
) -> Figure:
    """Attention weights over text: a row for each query, a column for each key.

    Effective attention of a linear mixer may have negative weights: then the colours run from one
    hue through white to another.

    Args:
      weights: (queries, keys).
      queries, keys: the tokens as text; keys are the queries by default. More than 48 tokens have
        no labels.
    """
    weights = np.asarray(weights, np.float64)
    keys = queries if keys is None else keys
    if weights.shape != (len(queries), len(keys)):
        raise ValueError(
            f"weights have the shape {weights.shape}, and there are {len(queries)} queries and"
            f" {len(keys)} keys"
        )
    height = 0.9 + (width - 1.2) * max(0.25, len(queries) / max(1, len(keys)))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    known = weights[np.isfinite(weights)]
    lowest, largest = known.min(initial=0.0), float(np.abs(known).max(initial=0.0)) or 1.0
    signed = lowest < -1e-6 * largest
    low, high = (-largest, largest) if signed else (0.0, largest)
    image = _cells(axes, weights, low, high, "RdBu_r" if signed else MAP)
    size = max(5.0, min(9.0, 200 / max(len(queries), len(keys))))
    for set_ticks, tokens, more in (
        (axes.set_xticks, keys, dict(rotation=90)),
        (axes.set_yticks, queries, {}),
    ):
        if len(tokens) <= 48:
            middles = [i + 0.5 for i in range(len(tokens))]
            set_ticks(middles, [_visible(t) for t in tokens], fontsize=size, **more)
        else:
            axes.locator_params(nbins=5)
    _frame(axes)
    axes.set(xlabel="key", ylabel="query", title=title)
    _bar(figure, axes, image, False, "weight")
    return figure


def _cells(axes: Axes, cells: Any, low: Any, high: Any, colors: str = MAP) -> Any:
    """Cells, the first row at the top: shapes, or one picture with a pixel a cell if they are many."""
    colors = matplotlib.colormaps[colors].resampled(65)  # odd: weights of 0 are in the middle
    if np.size(cells) > _SHAPES:
        extent = (0, np.shape(cells)[1], len(cells), 0)
        style: dict[str, Any] = dict(interpolation="none", aspect="auto", extent=extent)
        return axes.imshow(cells, cmap=colors, vmin=low, vmax=high, **style)
    # Edges of their own colour, because a viewer leaves hairlines between shapes.
    style = dict(edgecolors="face", linewidth=0.4)
    image = axes.pcolormesh(cells, cmap=colors, vmin=low, vmax=high, **style)
    axes.set_ylim(max(1, len(cells)), 0)
    axes.set_xlim(0, max(1, np.shape(cells)[1]))
    return image


def _pivot(
    rows: Sequence[dict[str, Any]],
    x: str,
    y: str,
    value: str,
    columns: list[Any] | None = None,
    lines: list[Any] | None = None,
) -> tuple[list[Any], list[Any], np.ndarray]:
    """(values of x, values of y, the means as an array (y, x) with NaN where there is none)."""
    columns = distinct([r[x] for r in rows]) if columns is None else columns
    lines = distinct([r[y] for r in rows]) if lines is None else lines
    sums = np.zeros((len(lines), len(columns)))
    counts = np.zeros_like(sums)
    at = {v: i for i, v in enumerate(columns)}, {v: i for i, v in enumerate(lines)}
    for r in rows:
        if finite(r.get(value)):
            place = at[1][r[y]], at[0][r[x]]
            sums[place] += r[value]
            counts[place] += 1
    return columns, lines, np.where(counts > 0, sums / np.maximum(counts, 1), math.nan)


def _numbered(axes: Axes, layers: Sequence[int], heads: int) -> None:
    axes.set_yticks([i + 0.5 for i in range(len(layers))], [str(layer) for layer in layers])
    every = max(1, heads // 16)
    axes.set_xticks([i + 0.5 for i in range(0, heads, every)], list(range(0, heads, every)))
    _frame(axes)


def _frame(axes: Axes) -> None:
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _bar(figure: Figure, axes: Axes, image: Any, percent: bool, label: str) -> None:
    bar = figure.colorbar(image, ax=axes, shrink=0.9, aspect=18, pad=0.02)
    bar.outline.set_visible(False)
    bar.solids.set(rasterized=False, edgecolor="face", linewidth=0.4)
    bar.ax.tick_params(length=0, colors=INK)
    bar.set_label(label)
    if percent:
        bar.set_ticks([0, 0.5, 1], labels=["0%", "50%", "100%"])


def _visible(token: str) -> str:
    """A token with its spaces and line ends shown."""
    return token.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥").replace("$", r"\$")


def _title(name: str) -> str:
    return {"length": "length (tokens)", "task": ""}.get(name, name)


def _depth(row: dict[str, Any]) -> float:
    return row["depth"]
