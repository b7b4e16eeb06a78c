"""The figure of docs/probes.md and its table, of the demo's run.

python docs/probes_figure.py --workdir runs/demo    # writes docs/probes.tsv from its probes.jsonl
python docs/probes_figure.py                        # draws docs/probes.svg again from the table
"""

import argparse
import csv
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from hybridlm.analysis import Run
from hybridlm.analysis.figures import probe_panels, save
from hybridlm.errors import exit_code

FOLDER = pathlib.Path(__file__).parent
PROBES = ("layer_probing", "retrieval_heads", "qk_distance")  # the demo has no slots
WORDS, WHOLE = ("probe", "mixer"), ("step", "layer", "head")
COLUMNS = (*WORDS, *WHOLE, "accuracy", "chance", "mass", "copy", "relative")


def rows_of(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a table, with numbers as numbers and without empty columns."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            {
                n: x if n in WORDS else int(x) if n in WHOLE else float(x)
                for n, x in row.items()
                if x
            }
            for row in csv.DictReader(file, delimiter="\t")
        ]


def write(path: pathlib.Path, workdir: pathlib.Path) -> None:
    """The entries of `PROBES` of a run, to 4 digits."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n", restval="")
        table.writeheader()
        for row in Run(workdir).probe_rows():
            if row["probe"] in PROBES:
                own = {n: row[n] for n in COLUMNS if row.get(n) is not None}
                table.writerow(
                    {n: round(x, 4) if isinstance(x, float) else x for n, x in own.items()}
                )


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="probes_figure", description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, help="a run with the probes' entries")
    parser.add_argument("--out", type=pathlib.Path, default=FOLDER)
    arguments = parser.parse_args(argv)
    table = arguments.out / "probes.tsv"
    if arguments.workdir is not None:
        write(table, arguments.workdir)
    save(probe_panels(rows_of(table)), arguments.out / "probes.svg")
    print(f"written: {arguments.out}/probes.svg")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("probes_figure", main))
