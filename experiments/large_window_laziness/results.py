"""Writes the tables, claims, figures and the README's table of the completed runs.

python -m experiments.large_window_laziness.results --workdir runs/laziness
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Sequence

from experiments.large_window_laziness import claims, figures, tables
from experiments.large_window_laziness.arms import SETS
from hybridlm.errors import exit_code
from hybridlm.storage.writing import write_text

README = pathlib.Path(__file__).with_name("README.md")


def filled(page: str, scale: str, results: pathlib.Path = claims.RESULTS) -> str:
    """The page with a scale's table of claims replaced by the committed one."""
    rows = tables.read(results / scale / "claims.tsv")
    lines = ["| claim | here | figure |", "|---|---|---|"]
    lines += ["| {claim} | **{outcome}** | {figure} |".format(**row) for row in rows]
    begin, end = f"<!-- claims {scale} -->", f"<!-- end of claims {scale} -->"
    table = "\n".join([begin, *lines, end])
    return re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _: table, page, flags=re.S)


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="results", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of all runs")
    parser.add_argument("--scale", choices=tuple(SETS), default="main")
    parser.add_argument("--out", type=pathlib.Path, default=claims.RESULTS)
    arguments = parser.parse_args(argv)
    curves, runs = tables.collect(arguments.workdir / arguments.scale)
    if not runs:
        print(f"results: no run in {arguments.workdir} is complete", file=sys.stderr)
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
    if arguments.out == claims.RESULTS:
        write_text(README, filled(README.read_text(encoding="utf-8"), arguments.scale))
    cost = sum(row["cpu_seconds"] for row in runs)
    print(f"{len(runs)} runs, {cost / 60:.0f} minutes of one core; written to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("results", main))
