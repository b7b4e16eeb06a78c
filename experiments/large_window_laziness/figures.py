"""Draws the figures from the committed tables.

python -m experiments.large_window_laziness.figures [--scale main] [--results FOLDER]

Dots and thin lines are single runs; a run without retrieval is an open triangle at its last step.
Thick lines are means, those of times medians of arms whose runs all formed. A figure without any of
its runs is not drawn.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

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
from experiments.large_window_laziness.drawing import (
    STEPS,
    asides,
    by_window,
    color_of,
    core,
    dots,
    finished,
    means,
    name_of,
    row_of,
    seeds,
    step_axis,
    times,
)
from experiments.large_window_laziness.tables import Run
from hybridlm.analysis.figures import INK, PALETTE, to_svg
from hybridlm.errors import exit_code
from hybridlm.storage.writing import write_text, writing

TITLES = {"rope": "RoPE in the full layers", "nope": "NoPE in the full layers"}
HEADS = {
    "mass": "attention mass on the answer",
    "entropy": "normalised entropy",
    "qk_distance": "Q/K distance to the end",
}
REACH = "a window layer's reach"
Influences = Sequence[tables.Row]


def time_figure(
    runs: Sequence[Run], scale: ExperimentScale = MAIN, influences: Influences = ()
) -> Figure | None:
    """The step of retrieval against the window, with and without the shared first layer."""
    return _against_window(runs, scale, {"": "shared first layer", "-alone": "without it"})


def controls_figure(
    runs: Sequence[Run], scale: ExperimentScale = MAIN, influences: Influences = ()
) -> Figure | None:
    """The same under the controls; None without a run of them."""
    if not any(re.search("-(far|conv)-", run.arm) for run in runs):
        return None
    series = {"": "main table", "-far": "copies from far only", "-conv": "short convolution first"}
    return _against_window(runs, scale, series)


def _against_window(
    runs: Sequence[Run], scale: ExperimentScale, series: dict[str, str]
) -> Figure | None:
    """A panel for each kind of positions; `series` gives the label of each ending of arms' names."""
    figure, row = row_of(3.2)
    for axes, positions in zip(row, POSITIONS):
        places = asides(len(series), 0.045 * len(series))
        for number, (ending, label) in enumerate(series.items()):
            groups = by_window(runs, scale, ending, positions)
            options = dict(aside=places[number], apart=scale.windows[-1:])
            if groups:
                times(axes, groups, PALETTE[number], label, **options)
        axes.set_xscale("log", base=2)
        step_axis(axes)
        axes.set_xticks(scale.windows, [*map(str, scale.windows[:-1]), "full"])
        axes.set_xlabel("window (tokens)")
        axes.set_title(TITLES[positions], fontsize=9, color=INK)
    row[0].set_ylabel("step at which retrieval formed")
    return finished(figure)


def others_figure(
    runs: Sequence[Run], scale: ExperimentScale = MAIN, influences: Influences = ()
) -> Figure | None:
    """The step of retrieval of recurrences, NHA and cures, below the windows they compare with."""
    sets, width = SETS[scale.task.name], {p: len(p) + 1 for p in POSITIONS}
    shown = [a for a in sets["core"] if a.final in (scale.small, scale.large) or a.sees_all]
    with_conv = [arm for arm in sets["conv"] if arm.final is None]
    shown += [*sets["recurrent"], *with_conv, *sets["cures"]]
    names = list(dict.fromkeys(a.name[: -width[a.positions]] for a in shown))
    found = {name: [run for run in runs if run.arm in _both(name)] for name in names}
    names = [name for name in names if found[name]]
    if not {a.name for a in shown[6:]} & {run.arm for run in runs}:
        return None
    figure = Figure(figsize=(7.0, 1.0 + 0.3 * len(names)), layout="constrained")
    axes = figure.subplots()
    for place, name in enumerate(names):
        for number, positions in enumerate(POSITIONS):
            own = [run for run in found[name] if run.arm.endswith(positions)]
            height = place + 0.36 * (number - 0.5) + np.linspace(-0.1, 0.1, max(len(own), 1))
            dots(axes, height, own, PALETTE[number])
            axes.plot([], [], "o", color=PALETTE[number], label=TITLES[positions], markersize=4)
    for line in axes.lines:  # `dots` draws steps upwards
        line.set_data(line.get_ydata(), line.get_xdata())
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.set_xlabel("step at which retrieval formed")
    drawn = finished(figure)
    axes.xaxis.set_major_locator(FixedLocator(STEPS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.relim()
    axes.autoscale_view(scaley=False)
    return drawn


def _both(name: str) -> tuple[str, ...]:
    return tuple(f"{name}-{positions}" for positions in POSITIONS)


def rates_figure(
    runs: Sequence[Run], scale: ExperimentScale = MAIN, influences: Influences = ()
) -> Figure | None:
    """The step of retrieval against the learning rate, RoPE and NoPE, by window."""
    windows = (scale.small, scale.large)
    figure, row = row_of(3.2)
    for axes, window in zip(row, windows):
        rates: set[float] = set()  # those with a run
        for number, positions in enumerate(POSITIONS):
            found: dict[float, list[Run]] = {}
            for run in runs:
                rate = re.fullmatch(rf"w{window}-lr([\de.-]+)-{positions}", run.arm)
                if rate:
                    found.setdefault(float(rate[1]), []).append(run)
            times(axes, found, PALETTE[number], TITLES[positions], aside=0.12 * (number - 0.5))
            rates |= set(found)
        axes.set_xscale("log")
        step_axis(axes)
        axes.set_xticks(sorted(rates), [f"{rate:g}" for rate in sorted(rates)])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("learning rate")
        axes.set_title(f"window {window}", fontsize=9, color=INK)
    row[0].set_ylabel("step at which retrieval formed")
    return finished(figure)


def receptive_figure(
    runs: Sequence[Run], scale: ExperimentScale = MAIN, influences: Influences = ()
) -> Figure | None:
    """Far accuracy at the end against the receptive field of full and of efficient layers."""
    figure = Figure(figsize=(8.4, 5.2), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    groups = {"full": "full layers bounded", "local": "window layers bounded"}
    for line, positions in zip(grid, POSITIONS):
        for axes, (group, title) in zip(line, groups.items()):
            arms = core(runs, scale, positions)
            for aside, (name, own) in zip(asides(len(arms), 0.08), arms.items()):
                columns = [f"{group}_sees_{w}" for w in scale.windows]
                values = np.array([[run.facts[c] for c in columns] for run in own])
                seeds(axes, scale.windows, values, color_of(name, scale), name, aside)
            axes.set_xscale("log", base=2)
            axes.set_xticks(scale.windows, map(str, scale.windows))
            axes.set_ylim(-0.03, 1.03)
            axes.set_title(f"{title}, {TITLES[positions].split()[0]}", fontsize=9, color=INK)
        line[0].set_ylabel("accuracy on far copies")
    for axes in grid[-1]:
        axes.set_xlabel("receptive field (tokens)")
    return finished(figure)


def length_figure(
    runs: Sequence[Run], scale: ExperimentScale = MAIN, influences: Influences = ()
) -> Figure | None:
    """Accuracy on the furthest copies at 1, 2 and 4 times the training length."""
    figure, row = row_of(3.2)
    for axes, positions in zip(row, POSITIONS):
        arms = core(runs, scale, positions)
        for aside, (name, own) in zip(asides(len(arms), 0.04), arms.items()):
            values = np.array([[run.facts[f"length_{n}"] for n in tables.LENGTHS] for run in own])
            seeds(axes, (1, 2, 4), values, color_of(name, scale), name, aside)
        axes.set_xscale("log", base=2)
        axes.set_xticks((1, 2, 4), tables.LENGTHS)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("length over that in training")
        axes.set_title(TITLES[positions], fontsize=9, color=INK)
    row[0].set_ylabel("accuracy on the furthest copies")
    return finished(figure)


def training_figure(
    runs: Sequence[Run], scale: ExperimentScale = MAIN, influences: Influences = ()
) -> Figure | None:
    """Accuracy on the nearest copies (dashed) and the furthest (solid) over training, by arm."""
    arms = list(core(runs, scale, POSITIONS[0]) | core(runs, scale, POSITIONS[1]))
    if not arms:
        return None
    figure = Figure(figsize=(2.1 * max(len(arms), 3), 4.6), layout="constrained")
    grid = np.atleast_2d(figure.subplots(2, len(arms), sharex=True, sharey=True, squeeze=False))
    near = tables.distances(scale)[0]
    for line, positions in zip(grid, POSITIONS):
        for axes, name in zip(line, arms):
            for run in core(runs, scale, positions).get(name, ()):
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
    return finished(figure)


def masking_figure(
    runs: Sequence[Run], scale: ExperimentScale = MAIN, influences: Influences = ()
) -> Figure | None:
    """Far accuracy with all heads, without the retrieval heads, and without random heads."""
    figure, row = row_of(3.2)
    kinds = {"none": "all heads", "random": "without random heads", "retrieval": "without the best"}
    for axes, positions in zip(row, POSITIONS):
        arms = core(runs, scale, positions)
        names = [name_of(window, scale) for window in scale.windows]
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
    return finished(figure)


def influence_figure(
    runs: Sequence[Run], scale: ExperimentScale = MAIN, influences: Influences = ()
) -> Figure | None:
    """Gradient influence by distance; dotted lines are the reach of one window layer of each arm."""
    figure, row = row_of(3.2)
    for axes, positions in zip(row, POSITIONS):
        for name, own in core(runs, scale, positions).items():
            arm, numbers = own[0].arm, {run.seed for run in own}
            mine = [r for r in influences if r["arm"] == arm and int(r["seed"]) in numbers]
            if not mine:
                continue
            ranges = sorted({(int(r["first"]), int(r["last"])) for r in mine})
            middle = [np.sqrt((a + 1) * (b + 1)) for a, b in ranges]
            found = {(r["seed"], int(r["first"])): float(r["influence"]) for r in mine}
            known = sorted({r["seed"] for r in mine})
            values = np.array([[found[seed, a] for a, _ in ranges] for seed in known])
            means(axes, middle, values, color_of(name, scale), name)
            settings = ARMS[scale.task.name][arm]
            if settings.final is not None and not settings.sees_all:
                axes.axvline(
                    settings.final, color=color_of(name, scale), linewidth=0.9, linestyle=":"
                )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens:g}"))
        axes.set_xlabel("tokens back, the last token being 1")
        axes.set_title(TITLES[positions], fontsize=9, color=INK)
    row[0].set_ylabel("gradient influence")
    row[1].plot([], [], color=INK, linewidth=0.9, linestyle=":", label=REACH)
    return finished(figure)


def heads_figure(
    runs: Sequence[Run], scale: ExperimentScale = MAIN, influences: Influences = ()
) -> Figure | None:
    """The best head (see `tables.curve_columns`) of each run during training."""
    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    grid = figure.subplots(2, len(HEADS), sharex=True)
    for line, positions in zip(grid, POSITIONS):
        for name, own in core(runs, scale, positions).items():
            for axes, column in zip(line, HEADS):
                for i, run in enumerate(own):
                    known = np.isfinite(run.curve[column])
                    axes.plot(
                        run.steps[known],
                        run.curve[column][known],
                        color=color_of(name, scale),
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
    return finished(figure)


FIGURES: dict[str, Callable[..., Figure | None]] = {
    "time": time_figure,
    "controls": controls_figure,
    "others": others_figure,
    "rates": rates_figure,
    "receptive_field": receptive_figure,
    "length": length_figure,
    "training": training_figure,
    "masking": masking_figure,
    "influence": influence_figure,
    "heads": heads_figure,
}


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
