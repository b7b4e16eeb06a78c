"""Adds the complete runs of a workdir to results/, draws the figures, and writes the tables of README.md.

Runs of results/ that the workdir lacks stay. Without --workdir, tables and figures are made again from
results/.

Run: python -m experiments.native_hybrid_attention.results [--workdir runs/nha]
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Sequence

from experiments.large_window_laziness import tables as tsv
from experiments.native_hybrid_attention import run
from experiments.native_hybrid_attention.run import RESULTS, Row, Unit
from experiments.native_hybrid_attention.tables import Others, Rows, tables
from hybridlm.errors import UserError, exit_code
from hybridlm.storage.writing import write_text

README = pathlib.Path(__file__).parent / "README.md"
FILE = "runs.tsv"
#: Tables beside the runs, by name: where a workdir has them. In results/ they are NAME.tsv.
OTHERS = {"search": "search/search.tsv", "kept": "kept.tsv"}
COLUMNS = {
    "task": str,
    "arm": str,
    "seed": int,
    "steps": int,
    "loss": float,
    "accuracy_1x": float,
    "accuracy_2x": float,
    "accuracy_4x": float,
    "heldout": float,
    "cpu_seconds": float,
    "settings": str,
}
_TABLE = re.compile(r"<!-- table (\w+), made by results\.py -->\n.*?<!-- end -->", re.DOTALL)


def read(folder: pathlib.Path = RESULTS) -> dict[Unit, Row]:
    """The runs of a results folder."""
    path, found = folder / FILE, {}
    for text in tsv.read(path) if path.exists() else []:
        row = {name: COLUMNS[name](value) for name, value in text.items() if value != ""}
        found[Unit(row["task"], row["arm"], row["seed"])] = row
    return found


def read_others(folder: pathlib.Path = RESULTS) -> Others:
    """The rows of the tables beside the runs, by name; none where a file is missing."""
    paths = {name: folder / f"{name}.tsv" for name in OTHERS}
    return {name: tsv.read(path) if path.exists() else [] for name, path in paths.items()}


def collect(workdir: pathlib.Path, out: pathlib.Path = RESULTS, steps: int | None = None) -> None:
    """Adds the runs of a workdir to those of `out`, in the order of seeds and arms, and its other tables.

    A run that both have is the workdir's; so are the tables of OTHERS.

    Args:
      steps: of the runs, where `run.py` was given another number than the task's own.

    Raises:
      UserError: if the workdir has no complete run, or runs with other settings than now remain.
    """
    found = run.read(workdir)
    if not found:
        raise UserError(
            f"no run in {workdir} is complete: make some with experiments.native_hybrid_attention.run"
        )
    rows = read(out) | found
    other = [unit for unit, row in rows.items() if not run.is_current(unit, row, steps)]
    if other:
        names = "; ".join(f"{arm!r} on {task!r}, seed {seed}" for task, arm, seed in other)
        raise UserError(
            f"runs with other settings than now, such as --steps or an arm's: {names}: remove them"
            f" from {workdir} and from {out / FILE}, or make them again"
        )
    order = [unit for unit in run.units() if unit in rows]
    order += [unit for unit in rows if unit not in set(order)]
    tsv.write(out / FILE, tuple(COLUMNS), (rows[unit] for unit in order))
    for name, place in OTHERS.items():
        if (workdir / place).exists():
            write_text(out / f"{name}.tsv", (workdir / place).read_text(encoding="utf-8"))


def with_tables(text: str, rows: Rows, others: Others) -> str:
    """README.md with its tables made from the results."""
    made = tables(rows, others)

    def table(match: re.Match[str]) -> str:
        return f"<!-- table {match[1]}, made by results.py -->\n{made[match[1]]}\n<!-- end -->"

    return _TABLE.sub(table, text)


def draw(rows: Rows, out: pathlib.Path) -> None:
    """Writes the figures whose runs are there."""
    from experiments.native_hybrid_attention.figures import figures
    from hybridlm.analysis.figures import save

    for name, figure in figures(rows).items():
        save(figure, out / f"{name}.svg")


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="results", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, help="of run.py")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="folder of the runs")
    parser.add_argument("--page", type=pathlib.Path, default=README, help="page with the tables")
    parser.add_argument("--steps", type=int, help="of a rehearsal's runs")
    given = parser.parse_args(argv)
    if given.workdir is not None:
        collect(given.workdir, given.results, given.steps)
    rows, others = read(given.results), read_others(given.results)
    text = with_tables(given.page.read_text(encoding="utf-8"), rows, others)
    write_text(given.page, text)
    draw(rows, given.results)
    print(tables(rows, others)["cost"])
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("results", main))
