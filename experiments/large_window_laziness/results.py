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
    parser.add_argument("--scale", choices=tuple(SETS), default="main")
    parser.add_argument("--out", type=pathlib.Path, default=claims.RESULTS)
    arguments = parser.parse_args(argv)
    curves, runs = tables.collect(arguments.workdir / arguments.scale)
    if not runs:
        print(f"results: no run in {arguments.workdir} is done", file=sys.stderr)
        return 2
    folder = arguments.out / arguments.scale
    tables.write(folder / "curves.tsv", tables.CURVE, curves)
    tables.write(folder / "runs.tsv", tables.RUNS, runs)
    where = ["--results", str(arguments.out), "--scale", arguments.scale]
    claims.main(where)
    present = {row["arm"] for row in runs}
    for name, arms in SETS[arguments.scale].items():
        if any(arm.name in present for arm in arms):
            figures.main([*where, "--set", name])
    cost = sum(row["cpu_seconds"] for row in runs)
    print(f"{len(runs)} runs, {cost / 60:.0f} minutes of one core; written to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
