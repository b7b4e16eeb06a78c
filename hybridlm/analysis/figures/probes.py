"""The probes that need no map: layer probing, copies by heads, Q/K distance and the slots' share."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from hybridlm.analysis.figures.style import SOFT, Figure, color, distinct, finite, short, styled
from hybridlm.analysis.tables import Table, records_of
from hybridlm.errors import UserError

#: By probe: its figure, the axis, and whether the axis is the step.
PANELS = {
    "layer_probing": ("accuracy", "needle told from a layer", False),
    "retrieval_heads": ("copy", "answer copied by a head", False),
    "qk_distance": ("relative", "Q/K distance of a head to its end", True),
    "slot_share": ("share", "slots' share of a softmax", False),
}


@styled
def probe_panels(table: Table, *, width: float = 7.0) -> Figure:
    """A panel for each of `PANELS` that has entries; all but Q/K distance show the newest step.

    Args:
      table: entries of probes, as `Run.probe_rows()`, of one run or of several, which a column `run`
        tells apart. One run's heads have the colours of their mixers, several runs' those of their
        runs. A dot or a thin line is one head; dashes are the accuracy of guessing.

    Raises:
      UserError: if there is no entry to show.
    """
    rows = [r for r in records_of(table) if r["probe"] in PANELS]
    found = {probe: [r for r in rows if r["probe"] == probe and _known(r)] for probe in PANELS}
    found = {probe: own for probe, own in found.items() if own}
    if not found:
        raise UserError(f"the table has no entry of a probe among {', '.join(PANELS)}")
    several = len({r.get("run") for r in rows}) > 1
    by = "run" if several else "mixer"
    names = distinct([r[by] for own in found.values() for r in own])
    columns = min(2, len(found))
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(width, 0.5 + 2.4 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel in panels[len(found) :]:
        panel.remove()
    for axes, (probe, own) in zip(panels, found.items()):
        value, label, over_steps = PANELS[probe]
        if over_steps:
            _over_steps(axes, own, by, names, value)
        else:
            _by_layer(axes, own, by, names, value)
            axes.set_xlim(-0.5, max(r["layer"] for r in rows) + 0.5)
        axes.set_ylabel(label)
    handles = [
        Line2D([], [], marker="o", color=color(i), label=str(name)) for i, name in enumerate(names)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(names), 5))
    return figure


def _known(row: dict[str, Any]) -> bool:
    return finite(row[PANELS[row["probe"]][0]])


def _by_layer(
    axes: Axes, rows: Sequence[dict[str, Any]], by: str, names: Sequence[Any], value: str
) -> None:
    """A figure of the newest step by layer, as a line, or as a dot for each head."""
    whole = [r for r in rows if "head" not in r or r["head"] is None]
    for run in distinct([r.get("run") for r in rows]):
        own = [r for r in rows if r.get("run") == run]
        newest = max(r["step"] or 0 for r in own)
        own = sorted((r for r in own if (r["step"] or 0) == newest), key=lambda r: r["layer"])
        shade = color(names.index(run)) if by == "run" else SOFT
        if whole:
            layers = [r["layer"] for r in own]
            axes.plot(layers, [r[value] for r in own], color=shade, linewidth=1.2, zorder=1)
            chance = [r["chance"] for r in own]
            axes.plot(layers, chance, color=shade, linewidth=1.0, linestyle="--")
        for r in own:
            aside = 0.0
            if by == "run" and not whole:  # runs beside each other
                aside = 0.5 * ((names.index(run) + 0.5) / len(names) - 0.5)
            dot = color(names.index(r[by]))
            axes.plot(r["layer"] + aside, r[value], "o", color=dot, alpha=0.8, markersize=4.5)
    axes.set_ylim(-0.03, 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer")


def _over_steps(
    axes: Axes, rows: Sequence[dict[str, Any]], by: str, names: Sequence[Any], value: str
) -> None:
    """A thin line for each head over training."""
    heads = dict.fromkeys((r.get("run"), r["layer"], r["head"]) for r in rows)
    for run, layer, head in heads:
        own = [r for r in rows if (r.get("run"), r["layer"], r["head"]) == (run, layer, head)]
        own.sort(key=lambda r: r["step"])
        shade = color(names.index(own[0][by]))
        steps = [r["step"] for r in own]
        axes.plot(steps, [r[value] for r in own], color=shade, linewidth=1.0, alpha=0.8)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(FuncFormatter(short))
    axes.set_xlabel("step")
