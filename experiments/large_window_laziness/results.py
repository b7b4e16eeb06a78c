"""Writes the tables, claims, figures and the pages' marked blocks of the completed runs.

Runs that are in the tables already and not in the folder stay, so that the runs of the experiment can
be made on several machines, or one set at a time.

python -m experiments.large_window_laziness.results --workdir runs/laziness
"""

import argparse
import pathlib
import re
import sys
import textwrap
from collections.abc import Sequence

from experiments.large_window_laziness import (
    answers,
    claims,
    comparisons,
    figures,
    findings,
    page,
    remarks,
    tables,
)
from experiments.large_window_laziness.arms import SCALES
from experiments.large_window_laziness.text import page as text_page
from hybridlm.errors import exit_code
from hybridlm.storage.writing import write_text

README = pathlib.Path(__file__).with_name("README.md")
PAGES = (README, README.with_name("TABLES.md"))
WIDTH = 125  # characters of a line of the README


def blocks(scale: str, results: pathlib.Path = claims.RESULTS) -> dict[str, str]:
    """The text of each marked block of `PAGES`, by name, from the committed files of a scale."""
    folder, settings = results / scale, SCALES[scale]
    runs = tables.read_runs(folder)
    compared = tables.read(folder / "comparisons.tsv")
    main = [run for name in ("core", "long") for run in tables.of_set(runs, settings, name)]
    made = {
        "statistics": page.statistics_table(folder),
        "findings": findings.findings(runs, settings, claims.verdicts(runs, settings), compared),
        "arms": _with(page.arms_table(main), remarks.earlier(main, settings)),
        "claims": _with(page.claims_table(folder), remarks.spread(runs, settings)),
        "near": remarks.near_and_far(runs, compared, settings),
        "near_tables": page.comparisons_table(folder, "near"),
        "posthoc": _with(page.post_hoc_table(folder), remarks.post_hoc(folder)),
        "rates": _with(page.rates_table(runs), remarks.rates_sentence(runs, settings)),
        "shared": remarks.without_near(compared, settings),
        "counts": _with(
            page.counts_table(runs, scale),
            remarks.stochastic(runs, settings),
            remarks.doubling(runs, settings),
            remarks.earlier_cures(runs),
        ),
        "positions": remarks.summary(compared, "positions") or page.NOT_RUN,
        "positions_tables": page.comparisons_table(folder, "positions"),
        "traces": remarks.traces(folder, settings),
        "images": page.images(folder, scale),
        "probes": _with(page.probes_table(folder), remarks.probes(folder, settings)),
        "text": text_page.sentences(results / "text"),
        "text_tables": text_page.rows(results / "text"),
        "unshown": remarks.unshown(runs, settings),
        "cost": page.cost_table(runs, scale),
    }
    for name in comparisons.pairs(settings):
        if name in made:  # "positions", of the main table's own arms
            continue
        own = answers.arms_of(name, runs, settings)
        table = page.arms_table(own) if own else page.NOT_RUN
        made[name] = answers.answer(name, runs, compared, settings)
        made[f"{name}_tables"] = _with(
            table,
            remarks.earlier(own, settings),
            page.comparisons_table(folder, name),
            remarks.summary(compared, name),
        )
    return made


def _with(table: str, *sentences: str) -> str:
    """A table and what is said of it; of a table without runs nothing else is."""
    if table == page.NOT_RUN:
        return table
    return "\n\n".join(part for part in (table, *sentences) if part)


def wrapped(block: str) -> str:
    """The block with lines of at most `WIDTH` characters, but for tables and images."""
    lines = []
    for line in block.split("\n"):
        indent = " " * len(re.match(r"(\d+\. |- )?", line)[0])
        if line.startswith(("|", "!")) or not line:
            lines.append(line)
        else:
            lines += textwrap.wrap(
                line,
                WIDTH,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
    return "\n".join(lines)


def filled(text: str, scale: str, results: pathlib.Path = claims.RESULTS) -> str:
    """A page with a scale's blocks made anew from the committed files."""
    for name, made in blocks(scale, results).items():
        begin, end = f"<!-- {name} {scale} -->", f"<!-- end of {name} {scale} -->"
        block = "\n".join([begin, wrapped(made), end])
        text = re.sub(
            re.escape(begin) + ".*?" + re.escape(end), lambda _, b=block: b, text, flags=re.S
        )
    return text


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
    all_runs = tables.read_runs(folder)
    compared = comparisons.compared(all_runs, scale)
    tables.write(folder / "comparisons.tsv", comparisons.COLUMNS, compared)
    post_hoc = comparisons.post_hoc(all_runs, scale)
    tables.write(folder / "posthoc.tsv", comparisons.POST_HOC, post_hoc)
    where = ["--results", str(arguments.out), "--scale", arguments.scale]
    claims.main(where)
    figures.main(where)
    if arguments.out == claims.RESULTS:
        for path in PAGES:
            write_text(path, filled(path.read_text(encoding="utf-8"), arguments.scale))
    cost = sum(row["cpu_seconds"] for row in runs)
    also = f"; {kept} others were in the tables already" if kept else ""
    print(f"{len(runs)} runs, {cost / 60:.0f} minutes of one core; written to {folder}{also}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("results", main))
