"""Draws the figures from the committed tables.

python -m experiments.large_window_laziness.figures [--scale main] [--results FOLDER]

Dots and thin lines are single runs; a run without retrieval is an open triangle at its last step. A
figure without any of its runs is not drawn.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from experiments.large_window_laziness import tables
from experiments.large_window_laziness.arms import (
    ARMS,
    MAIN,
    POSITIONS,
    SCALES,
    SETS,
    ExperimentScale,
)
from experiments.large_window_laziness.claims import RESULTS
from experiments.large_window_laziness.tables import Run
from hybridlm.analysis.figures import FAINT, INK, PALETTE, to_svg
from hybridlm.errors import exit_code
from hybridlm.storage.writing import write_text, writing

TITLES = {"rope": "RoPE in the full layers", "nope": "NoPE in the full layers"}
HEADS = {
    "mass": "attention mass on the answer",
    "entropy": "normalised entropy",
    "qk_distance": "Q/K distance to the end",
}
Influences = Sequence[tables.Row]


def time_figure(
    runs: Sequence[Run], scale: ExperimentScale = MAIN, influences: Influences = ()
) -> Figure | None:
    """The step of retrieval against the window, with and without the shared first layer."""
    figure, row = _row(3.2)
    for axes, positions in zip(row, POSITIONS):
        for number, (ending, label) in enumerate(
            (("", "shared first layer"), ("-alone", "without it"))
        ):
            _times(axes, _by_window(runs, scale, ending, positions), PALETTE[number], label)
        axes.set_xscale("log", base=2)
        _step_axis(axes)
        axes.set_xticks(scale.windows, [*map(str, scale.windows[:-1]), "full"])
        axes.set_xlabel("window (tokens)")
        axes.set_title(TITLES[positions], fontsize=9, color=INK)
    row[0].set_ylabel("step at which retrieval formed")
    return _finished(figure)


def rates_figure(
    runs: Sequence[Run], scale: ExperimentScale = MAIN, influences: Influences = ()
) -> Figure | None:
    """The step of retrieval against the learning rate, RoPE and NoPE, by window."""
    windows = (scale.small, scale.large)
    figure, row = _row(3.2)
    for axes, window in zip(row, windows):
        for number, positions in enumerate(POSITIONS):
            found: dict[float, list[Run]] = {}
            for run in runs:
                rate = re.fullmatch(rf"w{window}-lr([\de.-]+)-{positions}", run.arm)
                if rate:
                    found.setdefault(float(rate[1]), []).append(run)
            _times(axes, found, PALETTE[number], TITLES[positions])
        axes.set_xscale("log")
        _step_axis(axes)
        axes.set_xlabel("learning rate")
        axes.set_title(f"window {window}", fontsize=9, color=INK)
    row[0].set_ylabel("step at which retrieval formed")
    return _finished(figure)


def receptive_figure(
    runs: Sequence[Run], scale: ExperimentScale = MAIN, influences: Influences = ()
) -> Figure | None:
    """Far accuracy at the end against the receptive field of full and of efficient layers."""
    figure = Figure(figsize=(8.4, 5.2), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    groups = {"full": "full layers bounded", "local": "window layers bounded"}
    for line, positions in zip(grid, POSITIONS):
        for axes, (group, title) in zip(line, groups.items()):
            for name, own in _core(runs, scale, positions).items():
                columns = [f"{group}_sees_{w}" for w in scale.windows]
                values = np.array([[run.facts[c] for c in columns] for run in own])
                _means(axes, scale.windows, values, _color(name, scale), name)
            axes.set_xscale("log", base=2)
            axes.set_xticks(scale.windows, map(str, scale.windows))
            axes.set_ylim(-0.03, 1.03)
            axes.set_title(f"{title}, {TITLES[positions].split()[0]}", fontsize=9, color=INK)
        line[0].set_ylabel("accuracy on far copies")
    for axes in grid[-1]:
        axes.set_xlabel("receptive field (tokens)")
    return _finished(figure)


def length_figure(
    runs: Sequence[Run], scale: ExperimentScale = MAIN, influences: Influences = ()
) -> Figure | None:
    """Accuracy on the furthest copies at 1, 2 and 4 times the training length."""
    figure, row = _row(3.2)
    for axes, positions in zip(row, POSITIONS):
        for name, own in _core(runs, scale, positions).items():
            values = np.array([[run.facts[f"length_{n}"] for n in tables.LENGTHS] for run in own])
            _means(axes, (1, 2, 4), values, _color(name, scale), name)
        axes.set_xscale("log", base=2)
        axes.set_xticks((1, 2, 4), tables.LENGTHS)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("length over that in training")
        axes.set_title(TITLES[positions], fontsize=9, color=INK)
    row[0].set_ylabel("accuracy on the furthest copies")
    return _finished(figure)


def training_figure(
    runs: Sequence[Run], scale: ExperimentScale = MAIN, influences: Influences = ()
) -> Figure | None:
    """Accuracy on the nearest copies (dashed) and the furthest (solid) over training, by arm."""
    arms = list(_core(runs, scale, POSITIONS[0]) | _core(runs, scale, POSITIONS[1]))
    if not arms:
        return None
    figure = Figure(figsize=(2.1 * max(len(arms), 3), 4.6), layout="constrained")
    grid = np.atleast_2d(figure.subplots(2, len(arms), sharex=True, sharey=True, squeeze=False))
    near = tables.distances(scale)[0]
    for line, positions in zip(grid, POSITIONS):
        for axes, name in zip(line, arms):
            for run in _core(runs, scale, positions).get(name, ()):
                axes.plot(
                    run.steps, run.curve[near], color=PALETTE[1], linewidth=0.7, linestyle="--"
                )
                axes.plot(run.steps, run.far, color=PALETTE[0], linewidth=0.7)
            axes.set_title(name, fontsize=9, color=INK)
            axes.set_ylim(-0.03, 1.03)
        line[0].set_ylabel(f"accuracy\n{TITLES[positions]}", fontsize=9)
    (a, b), (first, last) = scale.task.bins[0], scale.task.bins[-1]
    grid[0][0].plot(
        [], [], color=PALETTE[1], linestyle="--", label=f"copies from {a}–{b} tokens back"
    )
    grid[0][0].plot([], [], color=PALETTE[0], label=f"from {first}–{last} tokens back")
    for axes in grid[-1]:
        axes.set_xlabel("step", fontsize=9)
    return _finished(figure)


def masking_figure(
    runs: Sequence[Run], scale: ExperimentScale = MAIN, influences: Influences = ()
) -> Figure | None:
    """Far accuracy with all heads, without the retrieval heads, and without random heads."""
    figure, row = _row(3.2)
    kinds = {"none": "all heads", "random": "without random heads", "retrieval": "without the best"}
    for axes, positions in zip(row, POSITIONS):
        arms = _core(runs, scale, positions)
        names = [_name(window, scale) for window in scale.windows]
        for number, (which, label) in enumerate(kinds.items()):
            for name, own in arms.items():
                place = names.index(name)
                values = np.array([run.facts[f"masked_{which}"] for run in own])
                x = np.full(len(own), place + 0.22 * (number - 1))
                axes.plot(
                    x,
                    values,
                    "o",
                    markersize=3.5,
                    alpha=0.6,
                    color=PALETTE[number],
                    label=label if name == next(iter(arms)) else None,
                )
        axes.set_xticks(range(len(names)), names)
        axes.set_ylim(-0.03, 1.03)
        axes.set_title(TITLES[positions], fontsize=9, color=INK)
    row[0].set_ylabel("accuracy on far copies")
    return _finished(figure)


def influence_figure(
    runs: Sequence[Run], scale: ExperimentScale = MAIN, influences: Influences = ()
) -> Figure | None:
    """Gradient influence by distance; dotted lines are the reach of one window layer of each arm."""
    figure, row = _row(3.2)
    for axes, positions in zip(row, POSITIONS):
        for name, own in _core(runs, scale, positions).items():
            arm, seeds = own[0].arm, {run.seed for run in own}
            mine = [r for r in influences if r["arm"] == arm and int(r["seed"]) in seeds]
            if not mine:
                continue
            ranges = sorted({(int(r["first"]), int(r["last"])) for r in mine})
            middle = [np.sqrt((a + 1) * (b + 1)) for a, b in ranges]
            means = [
                np.mean([float(r["influence"]) for r in mine if int(r["first"]) == a])
                for a, _ in ranges
            ]
            axes.plot(middle, means, color=_color(name, scale), linewidth=1.8, label=name)
            reach = ARMS[scale.task.name][arm].final
            if reach is not None and reach < scale.task.length:
                axes.axvline(reach, color=_color(name, scale), linewidth=0.9, linestyle=":")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("tokens back, the last token being 1")
        axes.set_title(TITLES[positions], fontsize=9, color=INK)
    row[0].set_ylabel("gradient influence")
    return _finished(figure)


def heads_figure(
    runs: Sequence[Run], scale: ExperimentScale = MAIN, influences: Influences = ()
) -> Figure | None:
    """The best head (largest final mass) of each run during training."""
    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    grid = figure.subplots(2, len(HEADS), sharex=True)
    for line, positions in zip(grid, POSITIONS):
        for name, own in _core(runs, scale, positions).items():
            for axes, column in zip(line, HEADS):
                for i, run in enumerate(own):
                    known = np.isfinite(run.curve[column])
                    axes.plot(
                        run.steps[known],
                        run.curve[column][known],
                        color=_color(name, scale),
                        linewidth=0.8,
                        alpha=0.7,
                        label=name if not i else None,
                    )
        for axes, title in zip(line, HEADS.values()):
            axes.set_title(title, fontsize=9, color=INK)
            axes.set_ylim(bottom=0)
        line[0].set_ylabel(TITLES[positions], fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("step", fontsize=9)
    return _finished(figure)


FIGURES: dict[str, Callable[..., Figure | None]] = {
    "time": time_figure,
    "rates": rates_figure,
    "receptive_field": receptive_figure,
    "length": length_figure,
    "training": training_figure,
    "masking": masking_figure,
    "influence": influence_figure,
    "heads": heads_figure,
}


def _name(window: int, scale: ExperimentScale) -> str:
    return "full" if window == scale.windows[-1] else f"w{window}"


def _color(name: str, scale: ExperimentScale) -> str:
    """The colour of a window, the same in all figures."""
    return PALETTE[[_name(window, scale) for window in scale.windows].index(name)]


def _core(runs: Sequence[Run], scale: ExperimentScale, positions: str) -> dict[str, list[Run]]:
    """The runs of the windows by arm, without the suffix, in the order of the windows."""
    found = {}
    for arm in SETS[scale.task.name]["core"]:
        own = [run for run in runs if run.arm == arm.name]
        if own and arm.positions == positions:
            found[arm.name.removesuffix(f"-{positions}")] = own
    return found


def _by_window(
    runs: Sequence[Run], scale: ExperimentScale, ending: str, positions: str
) -> dict[float, list[Run]]:
    found = {}
    for window in scale.windows:
        own = [r for r in runs if r.arm == f"{_name(window, scale)}{ending}-{positions}"]
        if own:
            found[float(window)] = own
    return found


def _times(axes: Axes, groups: dict[float, list[Run]], color: str, label: str) -> None:
    """A dot per run over each x, and a line through the medians of groups that all formed."""
    for x, own in groups.items():
        times = [run.formed for run in own]
        spread = x * np.exp(np.linspace(-0.06, 0.06, len(own)) if len(own) > 1 else [0.0])
        for place, time in zip(spread, times):
            style = dict(marker="o") if time.seen else dict(marker="^", markerfacecolor="none")
            axes.plot(place, time.step, color=color, markersize=4, alpha=0.75, **style)
    seen = {x: [r.formed for r in own] for x, own in sorted(groups.items())}
    medians = [
        (x, np.median([t.step for t in times]))
        for x, times in seen.items()
        if all(t.seen for t in times)
    ]
    axes.plot(*(zip(*medians) if medians else ((), ())), color=color, linewidth=1.5, label=label)


def _step_axis(axes: Axes) -> None:
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))


def _means(axes: Axes, x: Sequence[float], values: np.ndarray, color: str, label: str) -> None:
    for line in values:
        axes.plot(x, line, color=color, linewidth=0.6, alpha=0.35)
    axes.plot(x, values.mean(axis=0), color=color, linewidth=1.8, label=label)


def _row(height: float) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(8.4, height), layout="constrained")
    return figure, figure.subplots(1, 2, sharex=True, sharey=True)


def _finished(figure: Figure) -> Figure | None:
    """The figure with the legend of all panels above it; None if nothing is drawn in it."""
    if not any(np.isfinite(line.get_ydata()).any() for a in figure.axes for line in a.lines):
        return None
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


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="figures", description=__doc__.split("\n")[0])
    parser.add_argument("--scale", choices=tuple(SCALES), default="main")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--png", action="store_true", help="PNG in place of SVG")
    arguments = parser.parse_args(argv)
    folder, scale = arguments.results / arguments.scale, SCALES[arguments.scale]
    runs = tables.read_runs(folder)
    influences = tables.read(folder / "influence.tsv")
    for name, make in FIGURES.items():
        figure = make(runs, scale, influences)
        if figure is None:
            continue
        path = folder / name
        if arguments.png:
            with writing(path.with_suffix(".png")):
                figure.savefig(path.with_suffix(".png"), dpi=110)
        else:
            write_text(path.with_suffix(".svg"), to_svg(figure))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("figures", main))
