"""Matplotlib figures of a run from its records, for reports and notebooks."""

import io
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from hybridlm.models.mixers import MixerConfig

Record = dict[str, Any]

# Okabe and Ito's palette, which colour-blind readers can distinguish.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#555555")
INK, FAINT = "#333333", "#B8B8B8"


def loss_figure(
    train: Sequence[Record], evals: Sequence[Record], bigram: Record | None = None
) -> Figure:
    """Training and held-out loss in bits per byte against the step, with the bigram baseline.

    The held-out loss of a moving average of the parameters is drawn where it was measured.
    """
    figure, axes = plain_axes(7.2, 3.4)
    shown = []
    dots = dict(linewidth=2, marker="o", markersize=4)
    averaged = [r for r in evals if "ema_bits_per_byte" in r]
    for records, key, label, style in (
        (train, "bits_per_byte", "training", dict(color=FAINT, linewidth=1.2)),
        (evals, "bits_per_byte", "held-out", dict(color=PALETTE[0], **dots)),
        (averaged, "ema_bits_per_byte", "held-out, average", dict(color=PALETTE[2], **dots)),
    ):
        points = [(r["step"], r[key]) for r in records if _finite(r.get(key, math.nan))]
        if points:
            axes.plot(*zip(*points), label=label, **style)
            shown += [y for _, y in points]
    if bigram:
        shown.append(bigram["bits_per_byte"])
        axes.axhline(bigram["bits_per_byte"], color=PALETTE[1], linewidth=1.2, linestyle="--")
        axes.annotate(
            f"bigram model {bigram['bits_per_byte']:.2f}",
            (1, bigram["bits_per_byte"]),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 4),
            textcoords="offset points",
            ha="right",
            color=PALETTE[1],
            fontsize=9,
        )
    lowest = min(shown, default=0)
    far = max(shown, default=0) > 20 * lowest or (bigram and bigram["bits_per_byte"] > 3 * lowest)
    if far and lowest > 0:  # answers may be learned to almost 0
        axes.set_yscale("log")
        axes.set_ylim(0.8 * lowest, 1.25 * max(shown))
    elif far:
        axes.set_ylim(0, 1.03 * max(shown))
    elif shown:
        axes.set_ylim(0.95 * lowest, min(max(shown), 3 * lowest) * 1.03)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.88))
    axes.set(xlabel="step", ylabel="bits per byte", title="Loss")
    return figure


def optimization_figure(train: Sequence[Record]) -> Figure:
    """Learning rate and gradient norm (before clipping) against the step."""
    figure = Figure(figsize=(7.2, 2.3), layout="constrained")
    for axes, key, title, color in zip(
        figure.subplots(1, 2),
        ("learning_rate", "grad_norm"),
        ("Learning rate", "Gradient norm, before clipping"),
        (PALETTE[2], PALETTE[3]),
    ):
        points = [(r["step"], r[key]) for r in train if _finite(r[key])]
        if points:
            axes.plot(*zip(*points), color=color, linewidth=1.3)
        axes.set_ylim(bottom=0)
        _plain(axes)
        axes.set(xlabel="step", title=title)
    return figure


def position_figure(evals: Sequence[Record]) -> Figure:
    """Bits per byte by position in the context, at the first and last evaluation."""
    figure, axes = plain_axes(7.2, 3.2)
    chosen = [(evals[0], FAINT, 1.2), (evals[-1], PALETTE[0], 2)] if len(evals) > 1 else []
    for record, color, width in chosen or [(evals[-1], PALETTE[0], 2)]:
        bins = [b for b in record["by_position"] if b["targets"] and _finite(b["bits_per_byte"])]
        x = [math.sqrt((b["first"] + 1) * (b["last"] + 1)) for b in bins]
        y = [b["bits_per_byte"] for b in bins]
        axes.plot(x, y, color=color, linewidth=width, marker="o", markersize=3.5)
        if bins:
            axes.annotate(
                f"step {record['step']}",
                (x[-1], y[-1]),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=color if width > 1.5 else INK,
                fontsize=9,
            )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.margins(x=0.12)
    axes.set(
        xlabel="position in the context (tokens)",
        ylabel="bits per byte",
        title="Held-out loss by position",
    )
    return figure


def pattern_figure(layers: Sequence[tuple[str, MixerConfig]], seq_len: int) -> Figure:
    """The layers bottom to top: each layer's mixer, and how much of the context it sees."""
    count = len(layers)
    height = max(1.8, min(0.34 * count, 9.0) + 0.9)
    figure, axes = plain_axes(7.2, height)
    colors = mixer_colors(layers)
    labelled = count <= 32
    for i, (name, mixer) in enumerate(layers):
        seen = mixer.reach(seq_len)
        attends = seen is not None
        reach = seen / seq_len if attends else 1.0
        axes.add_patch(Rectangle((0, i - 0.42), 0.16, 0.84, color=colors[name], linewidth=0))
        axes.add_patch(
            Rectangle(
                (1 - 0.8 * reach, i - 0.42),
                0.8 * reach,
                0.84,
                facecolor=colors[name],
                alpha=0.35 if attends else 0.15,
                linewidth=0,
            )
        )
        if labelled:
            style = dict(va="center", fontsize=9)
            axes.text(0.08, i, name, color="white", ha="center", fontweight="bold", **style)
            axes.text(0.215, i, mixer.mechanism, color=INK, **style)
    if not labelled:
        for name, mixer in dict(layers).items():
            axes.plot([], [], color=colors[name], linewidth=8, label=f"{name}: {mixer.mechanism}")
        figure.legend(frameon=False, loc="outside upper center", fontsize=9)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.6, count - 0.4)
    step = max(1, count // 12)
    axes.set_yticks(range(0, count, step))
    axes.set_xticks([0.2, 1], [f"{seq_len:,} tokens back", "now"])
    axes.grid(False)
    axes.set(ylabel="layer")
    axes.tick_params(length=0)
    if labelled:
        axes.set_title("Layer pattern, and how far back each layer sees")
    return figure


def state_figure(layers: Sequence[tuple[str, MixerConfig]], width: int) -> Figure:
    """Size of the decoding state against context length, summed over the layers of each mixer."""
    figure, axes = plain_axes(7.2, 3.2)
    colors, lengths = mixer_colors(layers), [2**i for i in range(8, 21)]
    for name, mixer in dict(layers).items():
        count = sum(other == name for other, _ in layers)
        y = [count * mixer.state_bytes(width, n) / 2**20 for n in lengths]
        axes.plot(lengths, y, color=colors[name], linewidth=2)
        axes.annotate(
            f"{name} x{count}",
            (lengths[-1], y[-1]),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=colors[name],
            fontsize=9,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.margins(x=0.12)
    axes.xaxis.set_major_formatter(FuncFormatter(token_label))
    axes.set(
        xlabel="context (tokens)", ylabel="MiB a sequence, bfloat16", title="State while decoding"
    )
    return figure


def heat_map_figure(rows: dict[str, dict[int, float]], title: str, ylabel: str) -> Figure:
    """A heat map of shares in [0, 1]: a row per name, top to bottom, a column per length."""
    lengths = sorted({length for row in rows.values() for length in row})
    figure = Figure(
        figsize=(max(3.6, 2.2 + 0.8 * len(lengths)), 1.3 + 0.32 * len(rows)), layout="constrained"
    )
    axes = figure.subplots()
    values = [[row.get(length, math.nan) for length in lengths] for row in rows.values()]
    image = axes.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if _finite(value):
                color = "white" if value < 0.6 else INK
                axes.text(
                    x, y, f"{100 * value:.0f}", ha="center", va="center", color=color, fontsize=8
                )
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(rows)), list(rows))
    axes.tick_params(length=0, colors=INK, labelsize=9)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="length (tokens)", ylabel=ylabel)
    axes.set_title(title, fontsize=11)
    bar = figure.colorbar(image, ax=axes, ticks=[0, 0.5, 1])
    bar.set_ticklabels(["0%", "50%", "100%"])
    bar.outline.set_visible(False)
    return figure


def mixer_colors(layers: Sequence[tuple[str, MixerConfig]]) -> dict[str, str]:
    """A colour for each mixer name, in order of appearance."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(dict(layers))}


def to_svg(figure: Figure) -> str:
    """The figure as an SVG element with text elements; the same figure gives the same bits."""
    import matplotlib

    buffer = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": "hybridlm", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def plain_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of this size in inches with one pair of axes, as in all figures of reports."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis="y", color="#EAEAEA", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.title.set_fontsize(11)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def token_label(x: float, _: Any = None) -> str:
    """A number of tokens as an axis label: 4k, 1M. The second argument is matplotlib's index."""
    return f"{x / 2**20:g}M" if x >= 2**20 else f"{x / 1024:g}k" if x >= 1024 else f"{x:g}"
