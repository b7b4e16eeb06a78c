"""Writes the tables, claims, figures and the README's tables of the completed runs.

Runs that are in the tables already and not in the folder stay, so that the runs of the experiment can
be made on several machines, or one set at a time.

python -m experiments.large_window_laziness.results --workdir runs/laziness
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Sequence

import numpy as np

from experiments.large_window_laziness import claims, comparisons, cured, figures, tables
from experiments.large_window_laziness.arms import SCALES
from experiments.large_window_laziness.paired import Time
from experiments.large_window_laziness.rates import rates
from hybridlm.errors import exit_code
from hybridlm.storage.writing import write_text

README = pathlib.Path(__file__).with_name("README.md")


def claims_table(folder: pathlib.Path) -> str:
    """The page's table of claims.tsv."""
    lines = ["| claim | contrast | seeds (not seen) | effect, 95% interval | p for, against | |"]
    lines += ["|---|---|--:|---|---|---|"]
    last = ""
    for row in tables.read(folder / "claims.tsv"):
        name = "" if row["claim"] == last else f"{row['claim']}: **{row['verdict']}**"
        last = row["claim"]
        lines.append(
            f"| {name} | {row['contrast']} | {row['seeds']} ({row['unseen']}) | {row['effect']} |"
            f" {row['p_holds']}, {row['p_fails']} | {row['outcome']} |"
        )
    return "\n".join(lines)


def arms_table(runs: Sequence[tables.Run]) -> str:
    """The page's table of arms: times, and the means of the figures at the end."""
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
    named = " | ".join([*columns, *head])
    lines = [
        f"| arm | runs | formed | median step | reach of the stack | {named} |",
        "|---|" + "--:|" * (4 + len(columns) + len(head)),
    ]
    for arm in dict.fromkeys(run.arm for run in runs):
        own = [run for run in runs if run.arm == arm]
        means = [np.mean([run.facts[column] for run in own]) for column in columns.values()]
        means += [np.mean([run.curve[column][-1] for run in own]) for column in head.values()]
        lines.append(
            f"| {arm} | {len(own)} | {sum(run.formed.seen for run in own)} |"
            f" {_median([run.formed for run in own])} | {own[0].facts['stack_reach']:.0f} | "
            + " | ".join(f"{mean:.2f}" for mean in means)
            + " |"
        )
    return "\n".join(lines)


def rates_table(runs: Sequence[tables.Run]) -> str:
    """The page's table of the sweep."""
    found = rates(runs)
    if not found:
        return "The sweep has not yet been run."
    lines = [
        "| full layers | rate | runs | formed | geometric mean step | |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for r in found:
        own = [other.rate for other in found if other.positions == r.positions]
        ends = ", an end of the sweep" if r.rate in (min(own), max(own)) else ""
        said = f"chosen{ends}" if r.chosen else ""
        lines.append(
            f"| {r.positions} | {r.rate:g} | {r.runs} | {r.formed} | {r.step:.0f} | {said} |"
        )
    return "\n".join(lines)


def counts_table(runs: Sequence[tables.Run], scale: str) -> str:
    """The page's table of the stochastic window's steps over those of the smallest window."""
    found = cured.counted(runs, SCALES[scale])
    if not found:
        return "Not yet run."
    lines = ["| steps of the stochastic window | seeds | ratio, 95% interval |", "|---|--:|---|"]
    lines += [f"| {what} | {seeds} | {ratio} |" for what, (ratio, seeds) in found.items()]
    return "\n".join(lines)


def comparisons_table(folder: pathlib.Path, name: str) -> str:
    """The page's rows of one table of comparisons.tsv."""
    rows = [row for row in tables.read(folder / "comparisons.tsv") if row["table"] == name]
    if not rows:
        return "Not yet run."
    lines = ["| steps of | over those of | seeds (not seen) | ratio, 95% interval | p |"]
    lines += ["|---|---|--:|---|--:|"]
    lines += [
        f"| {r['late']} | {r['early']} | {r['seeds']} ({r['late_unseen']}, {r['early_unseen']}) |"
        f" {_ratio(r)} | {r['p']} |"
        for r in rows
    ]
    return "\n".join(lines)


def _ratio(row: tables.Row) -> str:
    if row["ratio"] == "nan":
        return "not known"
    return f"{row['ratio']} [{row['low']}, {row['high']}]"


def _median(times: Sequence[Time]) -> str:
    """The median step, with those not seen counted as later than all others.

    Where one of the middle runs has not been seen, "> " and what its last step gives.
    """
    found = sorted(times, key=lambda time: (not time.seen, time.step))
    low, high = found[(len(found) - 1) // 2], found[len(found) // 2]
    return f"{'' if high.seen else '> '}{(low.step + high.step) / 2:.0f}"


def filled(page: str, scale: str, results: pathlib.Path = claims.RESULTS) -> str:
    """The page with a scale's tables replaced by those of the committed files."""
    made = {"claims": claims_table(results / scale)}
    runs = tables.read_runs(results / scale)
    made |= {"arms": arms_table(runs), "rates": rates_table(runs)}
    made["counts"] = counts_table(runs, scale)
    for name in comparisons.pairs():
        made[name] = comparisons_table(results / scale, name)
    for name, table in made.items():
        begin, end = f"<!-- {name} {scale} -->", f"<!-- end of {name} {scale} -->"
        block = "\n".join([begin, table, end])
        page = re.sub(
            re.escape(begin) + ".*?" + re.escape(end), lambda _, b=block: b, page, flags=re.S
        )
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="results", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of all runs")
    parser.add_argument("--scale", choices=tuple(SCALES), default="main")
    parser.add_argument("--out", type=pathlib.Path, default=claims.RESULTS)
    arguments = parser.parse_args(argv)
    scale = SCALES[arguments.scale]
    found = tables.collect(arguments.workdir / arguments.scale, scale)
    runs = found.runs
    if not runs:
        print(f"results: no run in {arguments.workdir} is complete", file=sys.stderr)
        return 2
    folder = arguments.out / arguments.scale
    kept = tables.write_tables(folder, found, scale)
    compared = comparisons.compared(tables.read_runs(folder), scale)
    tables.write(folder / "comparisons.tsv", comparisons.COLUMNS, compared)
    where = ["--results", str(arguments.out), "--scale", arguments.scale]
    claims.main(where)
    figures.main(where)
    if arguments.out == claims.RESULTS:
        write_text(README, filled(README.read_text(encoding="utf-8"), arguments.scale))
    cost = sum(row["cpu_seconds"] for row in runs)
    also = f"; {kept} others were in the tables already" if kept else ""
    print(f"{len(runs)} runs, {cost / 60:.0f} minutes of one core; written to {folder}{also}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("results", main))
