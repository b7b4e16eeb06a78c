"""What the figures share: colours, rows of panels, dots of times, means over thin lines of seeds."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from experiments.large_window_laziness.arms import SETS, ExperimentScale
from experiments.large_window_laziness.tables import Run
from hybridlm.analysis.figures import FAINT, INK, PALETTE

STEPS = [125 * 2**i for i in range(10)]  # ticks of an axis of steps


def name_of(window: int, scale: ExperimentScale) -> str:
    return "full" if window == scale.windows[-1] else f"w{window}"


def color_of(name: str, scale: ExperimentScale) -> str:
    """The colour of a window, the same in all figures."""
    return PALETTE[[name_of(window, scale) for window in scale.windows].index(name)]


def core(runs: Sequence[Run], scale: ExperimentScale, positions: str) -> dict[str, list[Run]]:
    """The runs of the windows by arm, without the suffix, in the order of the windows."""
    found = {}
    for arm in SETS[scale.task.name]["core"]:
        own = [run for run in runs if run.arm == arm.name]
        if own and arm.positions == positions:
            found[arm.name.removesuffix(f"-{positions}")] = own
    return found


def by_window(
    runs: Sequence[Run], scale: ExperimentScale, ending: str, positions: str
) -> dict[float, list[Run]]:
    found = {}
    for window in scale.windows:
        own = [r for r in runs if r.arm == f"{name_of(window, scale)}{ending}-{positions}"]
        if own:
            found[float(window)] = own
    return found


def dots(axes: Axes, places: Iterable[float], own: Sequence[Run], color: str) -> None:
    """A dot for each run at the step of its retrieval; an open triangle at its last step without."""
    for place, run in zip(places, own):
        seen, step = run.formed.seen, run.formed.step
        style = dict(marker="o") if seen else dict(marker="^", markerfacecolor="none")
        axes.plot(place, step, color=color, markersize=4, alpha=0.75, linestyle="", **style)


def times(
    axes: Axes,
    groups: dict[float, list[Run]],
    color: str,
    label: str,
    *,
    aside: float = 0.0,
    apart: Iterable[float] = (),
) -> None:
    """A dot per run over each x, and the medians of groups that all formed, joined by a line.

    Args:
      groups: the runs by x, on a logarithmic axis.
      aside: that the group stands beside its x, in ln x, so that two series do not cover each other.
      apart: x whose medians no line joins to the others.
    """
    medians = []
    for x, own in sorted(groups.items()):
        x = x * np.exp(aside)
        spread = np.linspace(-0.05, 0.05, len(own)) if len(own) > 1 else [0.0]
        dots(axes, x * np.exp(spread), own, color)
        if all(run.formed.seen for run in own):
            medians.append((x, float(np.median([run.formed.step for run in own]))))
    alone = [x * np.exp(aside) for x in apart]
    joined = [pair for pair in medians if pair[0] not in alone]
    line = zip(*joined) if joined else ((), ())
    axes.plot(*line, color=color, linewidth=1.5, label=label)
    for x, median in medians:
        if x in alone:
            axes.plot([x * np.exp(-0.12), x * np.exp(0.12)], [median] * 2, color=color, linewidth=2)


def step_axis(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator(STEPS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))


def means(
    axes: Axes, x: Sequence[float], values: np.ndarray, color: str, label: str, aside: float = 0.0
) -> None:
    """The mean over runs as a line, with a dot for each run; x is logarithmic (see `times`)."""
    x = np.asarray(x, float) * np.exp(aside)
    for line in values:
        axes.plot(x, line, "o", color=color, markersize=2.5, alpha=0.4, markeredgewidth=0)
    axes.plot(x, values.mean(axis=0), color=color, linewidth=1.6, label=label)


def seeds(
    axes: Axes, x: Sequence[float], values: np.ndarray, color: str, label: str, aside: float = 0.0
) -> None:
    """A thin line with dots for each run, and no mean: seeds may be all or nothing (see `times`)."""
    x = np.asarray(x, float) * np.exp(aside)
    for line in values:
        axes.plot(x, line, ".-", color=color, markersize=4, linewidth=0.6, alpha=0.55)
    axes.plot([], [], color=color, linewidth=1.6, label=label)


def asides(count: int, width: float) -> np.ndarray:
    """Where each of several series stands beside its x, in ln x."""
    return np.linspace(-width, width, count) if count > 1 else np.zeros(count)


def row_of(height: float) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(8.4, height), layout="constrained")
    return figure, figure.subplots(1, 2, sharex=True, sharey=True)


def finished(figure: Figure) -> Figure | None:
    """The figure with the legend of all panels above it; None if nothing is drawn in it."""
    lines = [line for panel in figure.axes for line in panel.lines]
    if not any(np.isfinite(np.asarray(line.get_ydata(), float)).any() for line in lines):
        return None
    if any(line.get_marker() == "^" for line in lines):
        style = dict(marker="^", markerfacecolor="none", markersize=4, linestyle="", color=INK)
        figure.axes[0].plot([], [], label="not formed by its last step", **style)
    for panel in figure.axes:
        _plain(panel)
    named: dict[str, Any] = {}
    for panel in figure.axes:  # a panel may lack some arms
        for handle, label in zip(*panel.get_legend_handles_labels()):
            named.setdefault(label, handle)
    figure.legend(
        named.values(),
        named,
        frameon=False,
        loc="outside upper center",
        fontsize=9,
        ncols=min(len(named), 6) or 1,
    )
    return figure


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(color=FAINT, linewidth=0.4, alpha=0.5)
