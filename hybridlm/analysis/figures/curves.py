"""Figures of losses: while a model trains, by position, and against other quantities."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hybridlm.analysis.figures.style import (
    FAINT,
    WIDTH,
    Figure,
    axes_of,
    color,
    distinct,
    finite,
    legend,
    short,
    styled,
)
from hybridlm.analysis.tables import Table, records_of
from hybridlm.distill.selection.noise import interval

LABELS = {
    "loss": "loss (nats a token)",
    "bits_per_byte": "bits per byte",
    "ema_bits_per_byte": "bits per byte of the average",
    "step": "step",
    "tokens": "training tokens",
    "flops": "training FLOPs",
    "grad_norm": "gradient norm",
    "learning_rate": "learning rate",
    "influence": "norm of the gradient",
    "mass": "attention on the needle",
    "relative_error": "relative squared error",
    "kl": "KL (nats a token)",
}
NAMES = ("run", "arm")  # columns whose values say what they are
Band = Literal["range", "interval"]


@styled
def learning_curves(
    table: Table,
    *,
    x: str = "tokens",
    y: str = "loss",
    by: str | None = None,
    run: str = "run",
    band: Band = "range",
    width: float = WIDTH,
) -> Figure:
    """A figure by training progress, a line for each group of runs and a band over its seeds.

    The line is the mean over the runs of a group, where all of them have been measured.

    Args:
      table: a row for each measurement, as `Runs.metrics("eval")`.
      x: column of the progress: step, tokens or flops.
      y: column of the figure.
      by: column that says which runs belong together ("model.mixers.swa.window"); None draws a line
        for each run.
      run: column that tells runs apart; runs of a table without it are one.
      band: "range" from the smallest to the largest run, "interval" the 95% interval of the mean
        (Student's t over runs).
      width: inches.
    """
    figure, axes = axes_of(width, 3.1)
    rows = [r for r in records_of(table) if finite(r.get(x)) and finite(r.get(y))]
    by = by or (run if any(run in r for r in rows) else None)
    for number, group in enumerate(distinct([r.get(by) for r in rows])):
        runs: dict[Any, dict[float, float]] = {}
        for r in rows:
            if r.get(by) == group:
                runs.setdefault(r.get(run), {})[r[x]] = r[y]
        places = sorted(set.intersection(*(set(of) for of in runs.values())))
        values = [[of[place] for of in runs.values()] for place in places]
        name = None if by is None else label_of(by, group, one=by == run or by in NAMES)
        marks = "o" if len(places) <= 12 else None
        means = np.mean(values, axis=1) if places else []
        axes.plot(places, means, label=name, marker=marks, color=color(number))
        if len(runs) > 1:
            low, high = _band(values, band)
            axes.fill_between(places, low, high, color=color(number), alpha=0.18, linewidth=0)
    _numbers(axes, x)
    axes.set(xlabel=LABELS.get(x, x), ylabel=LABELS.get(y, y))
    legend(figure, axes)
    return figure


@styled
def loss_curve(
    train: Table, evals: Table, bigram: float | None = None, *, width: float = WIDTH
) -> Figure:
    """Training and held-out loss of a run in bits per byte by step, with a bigram model's.

    The held-out loss of a moving average of the parameters is drawn where it was measured.

    Args:
      train, evals: `Run.metrics("train")` and `Run.metrics("eval")`.
      bigram: bits per byte of the baseline.
    """
    figure, axes = axes_of(width, 3.1)
    shown = []
    dots: dict[str, Any] = dict(marker="o")
    evals = records_of(evals)
    for records, key, name, style in (
        (records_of(train), "bits_per_byte", "training", dict(color=FAINT, linewidth=1.2)),
        (evals, "bits_per_byte", "held out", dict(color=color(0), **dots)),
        (evals, "ema_bits_per_byte", "held out, average", dict(color=color(2), **dots)),
    ):
        points = [(r["step"], r[key]) for r in records if finite(r.get(key))]
        if points:
            axes.plot(*zip(*points), label=name, **style)
            shown += [y for _, y in points]
    if bigram is not None:
        shown.append(bigram)
        label = f"bigram model, {bigram:.2f}"
        axes.axhline(bigram, color=color(1), linewidth=1.2, linestyle="--", label=label)
    lowest = min(shown, default=0)
    far = max(shown, default=0) > 20 * lowest or (bigram and bigram > 3 * lowest)
    if far and lowest > 0:  # answers may be learned to almost 0
        axes.set_yscale("log")
        axes.set_ylim(0.8 * lowest, 1.25 * max(shown))
    elif far:
        axes.set_ylim(0, 1.03 * max(shown))
    elif shown:
        axes.set_ylim(0.95 * lowest, min(max(shown), 3 * lowest) * 1.03)
    axes.set(xlabel="step", ylabel="bits per byte")
    legend(figure, axes)
    return figure


@styled
def progress_curve(table: Table, y: str, *, x: str = "step", width: float = WIDTH) -> Figure:
    """One column against the progress of a run, from 0: learning rate, gradient norm."""
    figure, axes = axes_of(width, 2.3)
    points = [(r[x], r[y]) for r in records_of(table) if finite(r.get(y))]
    if points:
        axes.plot(*zip(*points), color=color(2), linewidth=1.4)
    axes.set_ylim(bottom=0)
    _numbers(axes, x)
    axes.set(xlabel=LABELS.get(x, x), ylabel=LABELS.get(y, y))
    return figure


@styled
def loss_by_position(
    table: Table, *, by: str = "step", y: str = "bits_per_byte", width: float = WIDTH
) -> Figure:
    """The held-out loss by position in the context, a line for each value of `by`.

    Args:
      table: `Run.by_position()`, or `Runs.by_position()` of one step with by="run".
      by: column of the lines. Of more than ten values, the first, the last and some between are
        drawn. Of several rows at a position (of runs of one arm) the mean is drawn.
    """
    figure, axes = axes_of(width, 3.1)
    rows = [r for r in records_of(table) if finite(r.get(y))]
    groups = distinct([r[by] for r in rows])
    most = 6 if by in ("step", "tokens", "flops") else 10
    if len(groups) > most:
        groups = [groups[round(i * (len(groups) - 1) / (most - 1))] for i in range(most)]
    ordered = by in ("step", "tokens", "flops")
    for number, group in enumerate(groups):
        found: dict[float, list[float]] = {}
        for r in rows:
            if r[by] == group:
                place = math.sqrt((r["first"] + 1) * (r["last"] + 1))
                found.setdefault(place, []).append(r[y])
        last = number == len(groups) - 1
        early = dict(color=FAINT, linewidth=1.2, alpha=0.4 + 0.6 * (number + 1) / len(groups))
        style = early if ordered and not last else dict(color=color(0 if ordered else number))
        name = label_of(by, group, one=by in NAMES)
        means = [sum(values) / len(values) for values in found.values()]
        axes.plot(list(found), means, marker="o", label=name, **style)
    _powers(axes)
    axes.set(xlabel="position in the context (tokens)", ylabel=LABELS.get(y, y))
    legend(figure, axes)
    return figure


@styled
def by_distance(
    table: Table, *, y: str = "influence", by: str | None = "step", width: float = WIDTH
) -> Figure:
    """A figure by distance in tokens, both axes logarithmic: the influence of earlier inputs.

    Args:
      table: columns first and last (distances), `y` and `by`, as `Run.probes("gradient_influence")`.
    """
    figure, axes = axes_of(width, 3.1)
    rows = [r for r in records_of(table) if finite(r.get(y)) and r[y] > 0]
    for number, group in enumerate(distinct([r.get(by) for r in rows])):
        found = [r for r in rows if r.get(by) == group]
        places = [math.sqrt((r["first"] + 1) * (r["last"] + 1)) for r in found]
        name = None if by is None else label_of(by, group, one=False)
        axes.plot(places, [r[y] for r in found], marker="o", color=color(number), label=name)
    _powers(axes)
    axes.set_yscale("log")
    axes.set(xlabel="distance in tokens, 1 the last", ylabel=LABELS.get(y, y))
    legend(figure, axes)
    return figure


@styled
def sweep_summary(
    table: Table, *, x: str, y: str, by: str | None = None, width: float = WIDTH
) -> Figure:
    """A figure against a setting: a point a run, their mean, and the 95% interval of the mean.

    The interval is Student's t over the runs with the same setting; with one run there is none.

    Args:
      table: a row for each run, as `Runs.summary()`.
      x: column of the setting; numbers that span a factor of 8 are drawn on a logarithmic axis.
      y: column of the figure.
      by: column of lines, if a second setting was swept.
    """
    figure, axes = axes_of(width, 3.1)
    rows = [r for r in records_of(table) if finite(r.get(y)) and r.get(x) is not None]
    settings = distinct([r[x] for r in rows])
    numeric = all(map(finite, settings))
    place = {s: s if numeric else i for i, s in enumerate(settings)}
    logarithmic = numeric and len(settings) > 1 and min(settings) > 0
    logarithmic = logarithmic and max(settings) >= 8 * min(settings)
    for number, group in enumerate(distinct([r.get(by) for r in rows])):
        values: dict[Any, list[float]] = {}
        for r in rows:
            if r.get(by) == group:
                values.setdefault(r[x], []).append(r[y])
        found = {s: interval(values[s]) for s in settings if s in values}
        style: dict[str, Any] = dict(color=color(number))
        axes.errorbar(
            [place[s] for s in found],
            [v.mean for v in found.values()],
            [v.half or 0 for v in found.values()],
            marker="o",
            capsize=3,
            linestyle="-" if numeric else "none",
            label=None if by is None else label_of(by, group, one=False),
            **style,
        )
        dots = [(place[s], v) for s in found for v in values[s] if len(values[s]) > 1]
        if dots:
            axes.scatter(*zip(*dots), s=14, alpha=0.6, zorder=3, linewidths=0, **style)
    if logarithmic:
        axes.set_xscale("log", base=2)
    if numeric and len(settings) <= 8:
        axes.set_xticks(settings, [short(s) for s in settings])
        axes.minorticks_off()
    elif not numeric:
        axes.set_xticks(range(len(settings)), [str(s) for s in settings])
        axes.margins(x=0.2)
    axes.set(xlabel=x, ylabel=LABELS.get(y, y.replace("heldout", "held-out").replace("_", " ")))
    legend(figure, axes)
    return figure


def label_of(by: str, group: Any, *, one: bool) -> str:
    """A group in a legend: "window 64", or the name of a run alone."""
    name = f"{group:,}" if isinstance(group, int) and by in ("step", "tokens") else str(group)
    return name if one else f"{by.rpartition('.')[2].replace('_', ' ')} {name}"


def _band(values: Sequence[Sequence[float]], band: Band) -> tuple[list[float], list[float]]:
    if band == "range":
        return [min(v) for v in values], [max(v) for v in values]
    found = [interval(v) for v in values]
    return [v.mean - v.half for v in found], [v.mean + v.half for v in found]


def _numbers(axes: Axes, x: str) -> None:
    """Few ticks with metric prefixes, whole numbers for steps."""
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=x in ("step", "tokens")))
    axes.xaxis.set_major_formatter(FuncFormatter(short))


def _powers(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


__all__ = [
    "by_distance",
    "learning_curves",
    "loss_by_position",
    "loss_curve",
    "progress_curve",
    "sweep_summary",
]
