"""Writes the tables, the claims and the figures of the runs that are done.

python -m experiments.large_window_laziness.results --workdir runs/laziness
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from experiments.large_window_laziness import claims, figures, tables
from experiments.large_window_laziness.arms import SETS


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="results", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of all runs")
    parser.add_argument("--out", type=pathlib.Path, default=claims.RESULTS)
    arguments = parser.parse_args(argv)
    curves, runs = tables.collect(arguments.workdir)
    if not runs:
        print(f"results: no run in {arguments.workdir} is done", file=sys.stderr)
        return 2
    tables.write(arguments.out / "curves.tsv", tables.CURVE, curves)
    tables.write(arguments.out / "runs.tsv", tables.RUNS, runs)
    paths = [
        "--curves",
        str(arguments.out / "curves.tsv"),
        "--out",
        str(arguments.out / "claims.tsv"),
    ]
    claims.main(paths)
    present = {row["arm"] for row in runs}
    for name, arms in SETS.items():
        if any(arm.name in present for arm in arms):
            figures.main(["--results", str(arguments.out), "--set", name])
    cost = sum(row["cpu_seconds"] for row in runs)
    print(f"{len(runs)} runs, {cost / 60:.0f} minutes of one core; written to {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
