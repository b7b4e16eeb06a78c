"""The tables of the README that `results` writes from the committed files."""

import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from experiments.large_window_laziness import cured, tables
from experiments.large_window_laziness.arms import SCALES, SETS
from experiments.large_window_laziness.figures import FIGURES
from experiments.large_window_laziness.paired import FEWEST_PAIRS, Time
from experiments.large_window_laziness.rates import rates
from experiments.large_window_laziness.tables import Run

NOT_RUN = "Not yet run."


def claims_table(folder: pathlib.Path) -> str:
    """The page's table of claims.tsv."""
    rows, last = [], ""
    for row in tables.read(folder / "claims.tsv"):
        name = "" if row["claim"] == last else f"{row['claim']}: **{row['verdict']}**"
        last = row["claim"]
        seeds, p = f"{row['seeds']} ({row['unseen']})", f"{row['p_holds']}, {row['p_fails']}"
        rows.append((name, row["contrast"], seeds, row["effect"], p, row["outcome"]))
    heads = "claim | contrast | seeds (not seen) | effect, 95% interval | p for, against |"
    return table(heads, "|---|---|--:|---|---|---|", rows)


def arms_table(runs: Sequence[Run]) -> str:
    """A table of arms without the sweep: times, and the means of the figures at the end."""
    runs = [run for run in runs if not re.search(r"-lr[\de.-]+-", run.arm)]
    if not runs:
        return "No run of this table has been made yet."
    bound = next(n.rpartition("_")[2] for n in runs[0].facts if n.startswith("full_sees_"))
    columns = {f"{n} the length": f"length_{n}" for n in tables.LENGTHS}
    columns |= {
        f"full layers see {bound}": f"full_sees_{bound}",
        f"window layers see {bound}": f"local_sees_{bound}",
        "without 2 best heads": "masked_retrieval",
        "without 2 random": "masked_random",
    }
    head = {"best head's mass": "mass", "its entropy": "entropy"}
    heads = ["arm", "runs", "formed", "median step", "reach of the stack", *columns, *head]
    rows = []
    for arm in dict.fromkeys(run.arm for run in runs):
        own = [run for run in runs if run.arm == arm]
        means = [np.mean([run.facts[column] for run in own]) for column in columns.values()]
        means += [np.mean([run.curve[column][-1] for run in own]) for column in head.values()]
        steps = [run.formed for run in own]
        row = [arm, len(own), sum(step.seen for step in steps), median(steps)]
        row.append(f"{own[0].facts['stack_reach']:.0f}")
        rows.append(row + [f"{mean:.2f}" for mean in means])
    return table(" | ".join(heads), "|---|" + "--:|" * (len(heads) - 1), rows)


def rates_table(runs: Sequence[Run]) -> str:
    """The page's table of the sweep."""
    found = rates(runs)
    if not found:
        return "The sweep has not yet been run."
    rows = []
    for r in found:
        own = [other.rate for other in found if other.positions == r.positions]
        ends = ", an end of the sweep" if r.rate in (min(own), max(own)) else ""
        said = f"chosen{ends}" if r.chosen else ""
        rows.append((r.positions, f"{r.rate:g}", r.runs, r.formed, f"{r.step:.0f}", said))
    heads = "full layers | rate | runs | formed | geometric mean step |"
    return table(heads, "|---|--:|--:|--:|--:|---|", rows)


def counts_table(runs: Sequence[Run], scale: str) -> str:
    """The page's table of the stochastic window's steps over those of the smallest window."""
    found = cured.counted(runs, SCALES[scale])
    if not found:
        return NOT_RUN
    rows = [
        (what, seeds, interval_or_range(seeds, *(f"{x:.3g}" for x in interval)))
        for what, (interval, seeds) in found.items()
    ]
    heads = "ratio of steps | seeds | mean, 95% interval"
    return table(heads, "|---|--:|---|", rows)


def comparisons_table(folder: pathlib.Path, name: str) -> str:
    """The page's rows of one table of comparisons.tsv."""
    rows = [row for row in tables.read(folder / "comparisons.tsv") if row["table"] == name]
    if not rows:
        return NOT_RUN
    unseen = [f"{r['seeds']} ({r['late_unseen']}, {r['early_unseen']})" for r in rows]
    cells = [(r["late"], r["early"], n, ratio(r), r["p"]) for r, n in zip(rows, unseen)]
    heads = "steps of | over those of | seeds (not seen) | ratio, 95% interval | p"
    return table(heads, "|---|---|--:|---|--:|", cells)


def post_hoc_table(folder: pathlib.Path) -> str:
    """The page's table of posthoc.tsv."""
    path = folder / "posthoc.tsv"
    rows = tables.read(path) if path.exists() else []
    if not rows:
        return NOT_RUN
    effects = [f"{r['effect']} [{r['low']}, {r['high']}]" for r in rows]
    cells = [(r["contrast"], r["positions"], r["seeds"], e, r["p"]) for r, e in zip(rows, effects)]
    heads = "contrast | full layers | seeds | effect, 95% interval | p"
    return table(heads, "|---|---|--:|---|--:|", cells)


def statistics_table(folder: pathlib.Path) -> str:
    """The page's table of statistics.tsv."""
    path = folder / "statistics.tsv"
    if not path.exists():
        return NOT_RUN
    rows = tables.read(path)
    heads = f"of {int(rows[0]['samples']):,} samples of ten pairs | case | share"
    return table(heads, "|---|---|--:|", [(r["figure"], r["case"], r["share"]) for r in rows])


def cost_table(runs: Sequence[Run], scale: str) -> str:
    """Runs, steps and processor time by set, measurements and ends included."""
    rows = []
    for name in SETS[scale]:
        own = tables.of_set(runs, SCALES[scale], name)
        steps = sum(run.facts["steps"] for run in own)
        minutes = sum(run.facts["cpu_seconds"] for run in own) / 60
        planned = len(tables.planned(SCALES[scale], name))
        rows.append((f"`{name}`", len(own), planned, f"{steps:,.0f}", f"{minutes:.0f}"))
    heads = "set | runs | of | steps | minutes of processor time"
    return table(heads, "|---|--:|--:|--:|--:|", rows)


def probes_table(folder: pathlib.Path) -> str:
    """The page's table of probes.tsv: a row for each run."""
    path = folder / "probes.tsv"
    if not path.exists():
        return NOT_RUN
    rows = tables.read(path)
    columns = (
        "run | learning rate | step | answers told after each layer | by a guess |"
        " copied by the heads of each layer | softmax on slots"
    )
    lines = []
    for run in dict.fromkeys(row["run"] for row in rows):
        own = [row for row in rows if row["run"] == run]
        told = [row for row in own if row["probe"] == "layer_probing"]
        heads = [row for row in own if row["probe"] == "retrieval_heads"]
        layers = dict.fromkeys(row["layer"] for row in heads)
        copied = [
            f"{layer} ({next(h['mixer'] for h in heads if h['layer'] == layer)}): "
            + ", ".join(_two(h["copy"]) for h in heads if h["layer"] == layer)
            for layer in layers
        ]
        slots = [_two(row["share"], 3) for row in own if row["probe"] == "slot_share"]
        cells = [run, f"{float(told[0]['lr']):g}", told[0]["step"]]
        cells += [", ".join(_two(row["accuracy"]) for row in told), _two(told[0]["chance"])]
        lines.append([*cells, "; ".join(copied), ", ".join(slots) or "–"])
    return table(columns, "|---|--:|--:|---|--:|---|---|", lines)


def images(folder: pathlib.Path, scale: str) -> str:
    """The figures that have been drawn, in the order of `FIGURES`."""
    drawn = [name for name in FIGURES if (folder / f"{name}.svg").exists()]
    return "\n".join(
        f"![{FIGURES[name].__doc__.splitlines()[0].split(';')[0].rstrip('.')}]"
        f"(results/{scale}/{name}.svg)"
        for name in drawn
    )


def table(heads: str, alignment: str, rows: Iterable[Sequence[Any]]) -> str:
    """A table of Markdown; `heads` have bars between them, and `alignment` is the second line."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([f"| {heads} |", alignment, *lines])


def _two(text: str, digits: int = 2) -> str:
    return f"{float(text):.{digits}f}"


def ratio(row: tables.Row) -> str:
    """A ratio of comparisons.tsv with its interval, or with the range of few seeds."""
    if row["ratio"] == "nan":
        return "not known"
    return interval_or_range(int(row["seeds"]), row["ratio"], row["low"], row["high"])


def interval_or_range(seeds: int, value: str, low: str, high: str) -> str:
    """A value with what `paired.interval_or_range` gives for so many seeds."""
    if seeds < FEWEST_PAIRS:
        return f"{value} ({seeds} seeds: {low} to {high})"
    return f"{value} [{low}, {high}]"


def median(times: Sequence[Time]) -> str:
    """The median step, with those not seen counted as later than all others.

    Where one of the middle runs has not been seen, "> " and what its last step gives.
    """
    found = sorted(times, key=lambda time: (not time.seen, time.step))
    low, high = found[(len(found) - 1) // 2], found[len(found) // 2]
    return f"{'' if high.seen else '> '}{(low.step + high.step) / 2:.0f}"
