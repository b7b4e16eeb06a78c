"""Draws the figures from the committed tables.

python -m experiments.large_window_laziness.figures [--results FOLDER]
"""

import argparse
import pathlib
import re
import sys
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.large_window_laziness import tables
from experiments.large_window_laziness.arms import ARMS, MAIN, SCALES, SETS, ExperimentScale
from experiments.large_window_laziness.claims import RESULTS
from experiments.large_window_laziness.statistics import survival
from experiments.large_window_laziness.tables import Curve
from hybridlm.analysis.figures import INK, PALETTE, to_svg
from hybridlm.errors import exit_code
from hybridlm.storage.writing import write_text, writing

POSITIONS = {"rope": "RoPE in the full layers", "nope": "NoPE in the full layers"}
HEADS = {
    "mass": "attention mass on the needle",
    "entropy": "normalised entropy",
    "qk_distance": "Q/K distance to the end",
}


def accuracy_figure(curves: Sequence[Curve], scale: ExperimentScale = MAIN) -> Figure:
    """Accuracy by step for each range of distances; thin lines are single runs."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    grid = figure.subplots(2, len(tables.DISTANCES), sharex=True, sharey=True)
    for row, (positions, title) in zip(grid, POSITIONS.items()):
        for axes, column, (first, last) in zip(row, tables.DISTANCES, scale.task.bins):
            _lines(axes, _of(curves, positions, scale), column)
            axes.set_title(f"{first}-{last} tokens back", fontsize=9, color=INK)
            axes.set_ylim(-0.03, 1.03)
        row[0].set_ylabel(f"accuracy\n{title}", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("step", fontsize=9)
    _legend(figure, grid[0][0])
    return figure


def heads_figure(curves: Sequence[Curve], scale: ExperimentScale = MAIN) -> Figure:
    """The retrieval heads (those with the largest final score) during training."""
    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    grid = figure.subplots(2, len(HEADS), sharex=True)
    for row, (positions, title) in zip(grid, POSITIONS.items()):
        for axes, (column, name) in zip(row, HEADS.items()):
            _lines(axes, _of(curves, positions, scale), column)
            axes.set_title(name, fontsize=9, color=INK)
            axes.set_ylim(bottom=0)
        row[0].set_ylabel(title, fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("step", fontsize=9)
    _legend(figure, grid[0][0])
    return figure


def survival_figure(curves: Sequence[Curve], scale: ExperimentScale = MAIN) -> Figure:
    """Share of runs without retrieval by step (Kaplan-Meier)."""
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    row = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, (positions, title) in zip(row, POSITIONS.items()):
        for number, (name, runs) in enumerate(_of(curves, positions, scale).items()):
            steps, share = survival([run.formed for run in runs])
            end = max(run.steps[-1] for run in runs)
            steps, share = np.append(steps, end), np.append(share, share[-1])
            # A small offset separates curves that coincide.
            axes.step(
                steps,
                share + 0.008 * number,
                where="post",
                color=PALETTE[number % 8],
                linewidth=1.8,
                label=_label(name),
            )
        axes.set_title(title, fontsize=9, color=INK)
        axes.set_xlabel("step", fontsize=9)
        axes.set_ylim(-0.03, 1.07)
        _plain(axes)
    row[0].set_ylabel("runs without retrieval", fontsize=9)
    _legend(figure, row[0])
    return figure


def local_figure(curves: Sequence[Curve], scale: ExperimentScale = MAIN) -> Figure:
    """The loss on local text during training, minus its entropy."""
    from experiments.large_window_laziness.stream import LOCAL_ENTROPY

    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    row = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, (positions, title) in zip(row, POSITIONS.items()):
        _lines(axes, _of(curves, positions, scale), "local_nll", LOCAL_ENTROPY)
        axes.set_title(title, fontsize=9, color=INK)
        axes.set_xlabel("step", fontsize=9)
        axes.set_yscale("log")
    row[0].set_ylabel("local text: nats above its entropy", fontsize=9)
    _legend(figure, row[0])
    return figure


FIGURES = {
    "accuracy": accuracy_figure,
    "heads": heads_figure,
    "survival": survival_figure,
    "local_loss": local_figure,
}


def _of(curves: Sequence[Curve], positions: str, scale: ExperimentScale) -> dict[str, list[Curve]]:
    """The runs with these positions by arm, without the suffix, in the order of `ARMS`."""
    found: dict[str, list[Curve]] = defaultdict(list)
    order = {name: i for i, name in enumerate(ARMS[scale.task.name])}
    for curve in sorted(curves, key=lambda c: order.get(c.arm, len(order))):
        if curve.arm.endswith(f"-{positions}"):
            found[curve.arm.removesuffix(f"-{positions}")].append(curve)
    return found


def _lines(axes: Axes, arms: dict[str, list[Curve]], column: str, less: float = 0.0) -> None:
    for number, (name, runs) in enumerate(arms.items()):
        color = PALETTE[number % len(PALETTE)]
        for run in runs:
            axes.plot(run.steps, run.values[column] - less, color=color, linewidth=0.7, alpha=0.35)
        shared = min(len(run.steps) for run in runs)
        mean = np.mean([run.values[column][:shared] for run in runs], axis=0)
        axes.plot(
            runs[0].steps[:shared], mean - less, color=color, linewidth=1.8, label=_label(name)
        )
    _plain(axes)


def _label(name: str) -> str:
    width = re.fullmatch(r"w(\d+)(-long)?", name)
    return f"window {width[1]}{', long' if width[2] else ''}" if width else name


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        frameon=False,
        loc="outside upper center",
        fontsize=9,
        ncols=min(len(labels), 6) or 1,
    )


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=8, colors=INK)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="figures", description=__doc__.split("\n")[0])
    parser.add_argument("--scale", choices=tuple(SCALES), default="main")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--set", default="core", help="runs to show: a set of arms")
    parser.add_argument("--png", action="store_true", help="PNG in place of SVG")
    arguments = parser.parse_args(argv)
    folder, scale = arguments.results / arguments.scale, SCALES[arguments.scale]
    wanted = {arm.name for arm in SETS[arguments.scale][arguments.set]}
    curves = tables.read_curves(tables.read(folder / "curves.tsv"))
    curves = [curve for curve in curves if curve.arm in wanted]
    if not curves:
        print(f"figures: no run of {arguments.set} in {folder}", file=sys.stderr)
        return 2
    for name, make in FIGURES.items():
        path = folder / f"{arguments.set}_{name}"
        if arguments.png:
            with writing(path.with_suffix(".png")):
                make(curves, scale).savefig(path.with_suffix(".png"), dpi=110)
        else:
            write_text(path.with_suffix(".svg"), to_svg(make(curves, scale)))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("figures", main))
