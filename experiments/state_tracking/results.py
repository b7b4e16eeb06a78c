"""Adds the complete runs of a workdir to results/, and writes the tables of README.md from them.

Runs of results/ that the workdir lacks stay. Without --workdir the tables are made again from results/.

Run: python -m experiments.state_tracking.results [--workdir runs/state]
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.state_tracking import run
from experiments.state_tracking.arms import ARMS, LENGTH, SEEDS, SOME, STEPS, TIMES, Arm
from experiments.state_tracking.predictions import FAMILIES, LEARNED, verdict
from experiments.state_tracking.run import RESULTS, Row, Unit
from experiments.state_tracking.tasks import TASKS
from hybridlm.errors import UserError, exit_code
from hybridlm.models.accounting import state_bytes
from hybridlm.settings import json_text
from hybridlm.storage.writing import make_folder, write_text

README = pathlib.Path(__file__).parent / "README.md"
_TABLE = re.compile(r"<!-- table (\w+), made by results\.py -->\n.*?<!-- end -->", re.DOTALL)

Rows = Mapping[Unit, Row]


def seeds_of(rows: Rows, task: str, arm: str) -> list[Row]:
    """The runs of an arm on a task, by seed."""
    return [rows[unit] for seed in SEEDS if (unit := Unit(task, arm, seed)) in rows]


def task_table(rows: Rows, name: str) -> str:
    """A task's arms: accuracy at each length, what the papers say, and whether the runs agree."""
    task = TASKS[name]
    lines = [
        "| mixer | seeds | steps | 1x the length | 2x | 4x | papers | |",
        "|---|--:|--:|---|---|---|---|---|",
    ]
    for arm in ARMS.values():
        own = seeds_of(rows, name, arm.name)
        if not own:
            continue
        accuracies = [row["accuracy"] for row in own]
        says = FAMILIES[arm.family].says[name]
        cells = [_spread([a[i] for a in accuracies]) for i in range(len(accuracies[0]))]
        steps = [row["steps"] for row in own]
        lines.append(
            f"| {arm.title} | {len(own)} | {_range(steps)} | {' | '.join(cells)} | {says} |"
            f" {verdict(says, task, accuracies)} |"
        )
    return "\n".join(lines) if len(lines) > 2 else "Not yet run."


def summary_table(rows: Rows) -> str:
    """All arms by task: seeds that do it, of those that were run; and their state's size."""
    lines = [
        f"| mixer | bytes of state | {' | '.join(task.title for task in TASKS.values())} |",
        "|---|--:|" + "---|" * len(TASKS),
    ]
    for arm in ARMS.values():
        cells = [_cell(rows, name, arm) for name in TASKS]
        if any(cells):
            size = state_bytes(arm.model(), TIMES[-1] * LENGTH)[0]
            lines.append(f"| {arm.title} | {size:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rows: Rows, name: str, arm: Arm) -> str:
    own = seeds_of(rows, name, arm.name)
    if not own:
        return ""
    at = 0 if name == "mqar" else -1
    values = [row["accuracy"][at] for row in own]
    done = sum(value >= LEARNED for value in values)
    says = FAMILIES[arm.family].says[name]
    return f"{np.mean(values):.2f}, {done} of {len(own)} ({says})"


def sources_table(rows: Rows) -> str:
    """The families of mixers, and the sources of what they can do."""
    lines = ["| mixers | their state | sources |", "|---|---|---|"]
    for name, family in FAMILIES.items():
        titles = [arm.title for arm in ARMS.values() if arm.family == name]
        lines.append(f"| {'; '.join(titles)} | {family.what} | {family.why} |")
    return "\n".join(lines)


def cost_table(rows: Rows) -> str:
    """The runs of each task and their processor time."""
    lines = ["| task | steps at most | runs | processor minutes |", "|---|--:|--:|--:|"]
    for name, task in TASKS.items():
        own = [row for unit, row in rows.items() if unit.task == name]
        minutes = sum(row["cpu_seconds"] for row in own) / 60
        lines.append(f"| {task.title} | {STEPS[name]:,} | {len(own)} | {minutes:.1f} |")
    minutes = sum(row["cpu_seconds"] for row in rows.values()) / 60
    lines.append(f"| all | | {len(rows)} | {minutes:.1f} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    """Mean, and least to most."""
    return f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def tables(rows: Rows) -> dict[str, str]:
    """The tables of README.md by name."""
    made = {f"task_{name}": task_table(rows, name) for name in TASKS}
    return {
        "summary": summary_table(rows),
        **made,
        "sources": sources_table(rows),
        "cost": cost_table(rows),
        "missing": missing(rows),
    }


def missing(rows: Rows) -> str:
    """The runs that are still to be made: all seeds of an arm, unless some are named."""
    todo = [unit for unit in run.units(list(TASKS), list(ARMS), len(SEEDS)) if unit not in rows]
    if not todo:
        return f"All runs were made; {', '.join(SOME)} with {len(SOME['a5'])} arms."
    found = []
    for task in TASKS:
        names = []
        for arm in ARMS.values():
            seeds = [unit.seed for unit in todo if (unit.task, unit.arm) == (task, arm.name)]
            some = f" (seed {', '.join(map(str, seeds))})" if len(seeds) < len(SEEDS) else ""
            names += [arm.title + some] if seeds else []
        if names:
            found.append(f"- {TASKS[task].title}: {'; '.join(names)}")
    return f"{len(todo)} runs are still to be made:\n\n" + "\n".join(found)


def with_tables(text: str, rows: Rows) -> str:
    """README.md with its tables made from the results."""
    made = tables(rows)

    def table(match: re.Match[str]) -> str:
        return f"<!-- table {match[1]}, made by results.py -->\n{made[match[1]]}\n<!-- end -->"

    return _TABLE.sub(table, text)


def collect(workdir: pathlib.Path, out: pathlib.Path = RESULTS) -> None:
    """Adds the runs of a workdir to those of `out`, in the order of arms, tasks and seeds.

    A run that both have is the workdir's.

    Raises:
      UserError: if the workdir has no complete run, or runs with other settings than now remain.
    """
    found = run.read(workdir)
    if not found:
        raise UserError(
            f"no run in {workdir} is complete: make some with experiments.state_tracking.run"
        )
    rows = run.read(out) | found
    other = [unit for unit, row in rows.items() if not run.is_current(unit, row)]
    if other:
        files = sorted({str((workdir if unit in found else out) / run.FILE) for unit in other})
        names = "; ".join(f"{arm!r} on {task!r}, seed {seed}" for task, arm, seed in other)
        raise UserError(
            f"runs with other settings than now, such as --steps or an arm's: {names}: remove their"
            f" lines from {' and '.join(files)}, or make them again"
        )
    order = run.units(list(TASKS), list(ARMS), len(SEEDS), every=True)
    lines = [json_text.dumps(rows[unit]) for unit in order if unit in rows]
    make_folder(out)
    write_text(out / run.FILE, "\n".join(lines) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="results", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, help="of run.py")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="folder of the runs")
    parser.add_argument("--page", type=pathlib.Path, default=README, help="page with the tables")
    arguments = parser.parse_args(argv)
    if arguments.workdir is not None:
        collect(arguments.workdir, arguments.results)
    rows, page = run.read(arguments.results), arguments.page
    write_text(page, with_tables(page.read_text(encoding="utf-8"), rows))
    print(summary_table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("results", main))
