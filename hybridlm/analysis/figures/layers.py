"""Figures of a model's layers: the pattern, and the state of decoding."""

from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from hybridlm.analysis.figures.style import (
    WIDTH,
    Figure,
    axes_of,
    color,
    legend,
    styled,
    token_label,
)
from hybridlm.analysis.tables import Table, records_of


@styled
def layer_pattern(table: Table, *, length: int, width: float = WIDTH) -> Figure:
    """The layers bottom to top: each layer's mixer, and how much of the context it sees.

    Args:
      table: a row for each layer, as `hybridlm.analysis.rows.layer_rows`: mixer (its name),
        mechanism, and reach, the tokens that it attends to (None for a state without a limit).
      length: tokens of the context.
    """
    rows = records_of(table)
    count = len(rows)
    figure, axes = axes_of(width, max(1.8, min(0.3 * count, 8.0) + 1.1))
    names = list(dict.fromkeys(r["mixer"] for r in rows))
    labelled = count <= 26
    for i, row in enumerate(rows):
        shade = color(names.index(row["mixer"]))
        attends = row["reach"] is not None
        seen = 0.76 * (min(1.0, row["reach"] / length) if attends else 1.0)
        axes.add_patch(Rectangle((0, i - 0.42), 0.19, 0.84, color=shade, linewidth=0))
        place = (1 - seen, i - 0.42)
        alpha = 0.35 if attends else 0.15
        axes.add_patch(Rectangle(place, seen, 0.84, facecolor=shade, alpha=alpha, linewidth=0))
        if labelled:
            name = dict(color="#ffffff", ha="center", fontweight="bold")
            axes.text(0.095, i, row["mixer"], va="center", fontsize=9, **name)
            axes.text(0.25, i, row["mechanism"], va="center", fontsize=9)
    if not labelled:
        mechanisms = {r["mixer"]: r["mechanism"] for r in rows}
        for i, name in enumerate(names):
            axes.plot([], [], color=color(i), linewidth=8, label=f"{name}: {mechanisms[name]}")
        legend(figure, axes)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.6, count - 0.4)
    axes.set_yticks(range(0, count, max(1, count // 12)))
    axes.set_xticks([0.24, 1], [f"{length:,} tokens back", "now"])
    for label, side in zip(axes.get_xticklabels(), ("left", "right")):
        label.set_horizontalalignment(side)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.set(ylabel="layer")
    return figure


@styled
def state_sizes(table: Table, *, width: float = WIDTH) -> Figure:
    """Size of the decoding state against context length, a line for the layers of each mixer.

    Args:
      table: columns mixer, layers (their number), tokens and bytes (of these layers together), as
        `hybridlm.analysis.rows.state_rows`.
    """
    figure, axes = axes_of(width, 3.0)
    rows = records_of(table)
    for number, name in enumerate(dict.fromkeys(r["mixer"] for r in rows)):
        found = [r for r in rows if r["mixer"] == name]
        places = [r["tokens"] for r in found]
        sizes = [r["bytes"] / 2**20 for r in found]
        label = f"{name} × {found[0]['layers']}"
        axes.plot(places, sizes, color=color(number), label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(token_label))
    axes.set(xlabel="context (tokens)", ylabel="state (MiB a sequence)")
    legend(figure, axes)
    return figure
