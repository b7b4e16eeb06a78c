"""Figures of a search for the layers that keep attention, from its `selections.json`."""

import math
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hybridlm.analysis.figures import FAINT, GRID, INK, PALETTE, plain_axes
from hybridlm.distill.selection.noise import interval

Record = dict[str, Any]


def figures(record: Record) -> dict[str, Figure]:
    """By name: "quality" against the number of replaced layers, "layers" that each method kept."""
    return {"quality": quality_figure(record), "layers": layers_figure(record)}


def quality_figure(record: Record) -> Figure:
    """The metric against the number of replaced layers, a line a method; bars are 95% intervals."""
    figure, axes = plain_axes(7.2, 3.6)
    total = len(record["layers"])
    ends = [(0, record["ends"]["teacher"]), (total, record["ends"]["student"])]
    for _, values in ends:
        axes.axhline(interval(values).mean, color=FAINT, linewidth=1, linestyle=":")
    lines: dict[str, dict[int, list[float]]] = {}
    for point in record["curve"]:
        lines.setdefault(point["method"], {})[point["replaced"]] = point["values"]
    for selection in record["selections"]:
        replaced = total - len(selection["kept"])
        lines.setdefault(selection["method"], {})[replaced] = selection["values"]
    for i, (method, points) in enumerate(lines.items()):
        points = dict(ends[:1]) | points
        x = sorted(n for n in points if math.isfinite(interval(points[n]).mean))
        y = [interval(points[n]) for n in x]
        axes.errorbar(
            [n + 0.06 * (i - len(lines) / 2) for n in x],  # so that bars do not hide each other
            [v.mean for v in y],
            [v.half or 0 for v in y],
            label=method,
            color=PALETTE[i % len(PALETTE)],
            marker="o",
            markersize=3.5,
            linewidth=1.5,
            capsize=2,
            linestyle="-" if i < len(PALETTE) else "--",
        )
    axes.xaxis.get_major_locator().set_params(integer=True)
    better = "higher" if record["higher_is_better"] else "lower"
    axes.set(
        xlabel=f"layers of {total} replaced",
        ylabel=f"{record['metric']} ({better} is better)",
        title="Quality by replaced layers",
    )
    axes.legend(frameon=False, fontsize=8)
    return figure


def layers_figure(record: Record) -> Figure:
    """The layers that each method kept, above the teacher's best retrieval heads by layer."""
    selections, depth = record["selections"], record["depth"]
    rows = [*(s["method"] for s in selections), "best head"]
    figure, axes = plain_axes(7.2, 1.1 + 0.34 * len(rows))
    candidates = set(record["layers"])
    for y, selection in enumerate(reversed(selections), start=1):
        kept = set(selection["kept"])
        for layer in range(depth):
            color = PALETTE[0] if layer in kept else GRID if layer in candidates else FAINT
            axes.add_patch(Rectangle((layer - 0.45, y - 0.42), 0.9, 0.84, color=color, linewidth=0))
    score = "mass" if record["retrieval"]["by"] == "retrieval" else "induction"
    most = max((row[score] for row in record["retrieval"]["layers"]), default=0.0)
    for row in record["retrieval"]["layers"]:
        style = dict(facecolor=PALETTE[1], alpha=row[score] / most if most else 0.0, linewidth=0)
        axes.add_patch(Rectangle((row["layer"] - 0.45, -0.42), 0.9, 0.84, **style))
    axes.set_xlim(-0.6, depth - 0.4)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_yticks(range(len(rows)), list(reversed(rows)), color=INK, fontsize=9)
    axes.grid(visible=False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(
        xlabel="layer",
        title=f"Layers kept, and the teacher's best heads ({score} up to {most:.2g})",
    )
    return figure
