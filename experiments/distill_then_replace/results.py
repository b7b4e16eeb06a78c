"""Collects what a run of `run.py` measured, draws the figures, and writes the tables into README.md.

Without --workdir the figures and tables are made again from the committed results.

Run: python -m experiments.distill_then_replace.results [--workdir runs/dtr]
"""

import argparse
import pathlib
import re
import sys
from typing import Any

from experiments.distill_then_replace import arms, decoding, finetuning, selecting, usage
from experiments.distill_then_replace.figures import figures
from experiments.distill_then_replace.run import ARMS, STUDENT
from experiments.distill_then_replace.tables import tables
from hybridlm import errors
from hybridlm.analysis.figures import to_svg
from hybridlm.distill.selection.search import RESULT, TABLE
from hybridlm.runs.json_files import read_json
from hybridlm.settings import json_text
from hybridlm.storage.writing import write_text

HERE = pathlib.Path(__file__).parent
RESULTS, README = HERE / "results", HERE / "README.md"
_TABLE = re.compile(r"<!-- table (\w+), made by results\.py -->\n.*?<!-- end -->", re.DOTALL)


def collect(workdir: pathlib.Path, out: pathlib.Path) -> None:
    """Copies the results of finished stages into `out`, a JSON file each."""
    found = {
        "blockwise": [x for arm in (STUDENT, *ARMS) if (x := arms.read(workdir, arm.name))],
        "usage": usage.read(workdir),
    }
    for name, path in (
        ("selections", workdir / "selected" / RESULT),
        ("more", workdir / "selected" / selecting.DONE),
        ("decode", workdir / decoding.DONE),
        ("finetune", workdir / finetuning.DONE),
    ):
        if path.exists():
            found[name] = read_json(path)
    for name, value in found.items():
        write_text(out / f"{name}.json", _dumped(value))
    table = workdir / "selected" / TABLE
    if table.exists():
        lines = [line for line in table.read_text().splitlines() if '"identity"' not in line[:12]]
        write_text(out / TABLE, "\n".join(lines) + "\n")


def read(folder: pathlib.Path = RESULTS) -> dict[str, Any]:
    """The results by name; "evaluations" is the table's rows."""
    found = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    if (folder / TABLE).exists():
        lines = (folder / TABLE).read_text().splitlines()
        found["evaluations"] = [json_text.loads(line) for line in lines]
    return found


def with_tables(text: str, results: dict[str, Any]) -> str:
    """README.md with its tables made from the results."""
    made = tables(results)

    def table(match: re.Match[str]) -> str:
        name = match[1]
        if name not in made:
            return match[0]
        return f"<!-- table {name}, made by results.py -->\n{made[name]}\n<!-- end -->"

    return _TABLE.sub(table, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, help="of run.py")
    return errors.exit_code("results", lambda: _run(parser.parse_args().workdir))


def _run(workdir: pathlib.Path | None) -> int:
    RESULTS.mkdir(exist_ok=True)
    if workdir is not None:
        collect(workdir, RESULTS)
    results = read()
    for name, figure in figures(results).items():
        write_text(RESULTS / f"{name}.svg", to_svg(figure))
    write_text(README, with_tables(README.read_text(), results))
    for name, table in tables(results).items():
        print(f"{name}\n\n{table}\n")
    return 0


def _dumped(value: Any) -> str:
    """JSON with numbers of 6 digits, lists on one line."""

    def rounded(x: Any) -> Any:
        if isinstance(x, float):
            return float(f"{x:.6g}")
        if isinstance(x, dict):
            return {key: rounded(v) for key, v in x.items()}
        return [rounded(v) for v in x] if isinstance(x, (list, tuple)) else x

    value = rounded(value)
    if isinstance(value, list):
        lines = ",\n ".join(json_text.dumps(x) for x in value)
        return f"[\n {lines}\n]\n"
    lines = ",\n ".join(f"{json_text.dumps(k)}: {json_text.dumps(v)}" for k, v in value.items())
    return f"{{\n {lines}\n}}\n"


if __name__ == "__main__":
    sys.exit(main())
