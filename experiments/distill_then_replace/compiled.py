"""Compiles the papers' budgets ahead of time, for four TPU v5p chips: writes results/compiled.json.

A recipe takes minutes of one core, and goes to the file as soon as it is compiled; rows that the file has
are not compiled again. `results.py` makes a table of the file.

Run with the environment of `make aot`:
    .venv-aot/bin/python -m experiments.distill_then_replace.compiled [ROW ...]
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from experiments.distill_then_replace.costs import HERE, ROWS
from hybridlm import errors
from hybridlm.errors import RunError, UserError
from hybridlm.runs.json_files import read_json, write_json

TOPOLOGY = "v5p:2x2x1"
MESH = ("--config.mesh.data=1", "--config.mesh.fsdp=-1")
#: A part of a batch has a sequence for each chip.
OTHERS = {"HALO of Qwen3-1.7B, stage 3": ("--config.train.accumulate=32",)}
FILE = HERE / "results" / "compiled.json"


def command(row: str, out: pathlib.Path) -> list[str]:
    """The words of `hybridlm compile` for a row of `costs.ROWS`."""
    words = ["compile", "--topology", TOPOLOGY, "--config", str(HERE / ROWS[row])]
    return [*words, *MESH, *OTHERS.get(row, ()), "--out", str(out)]


def kept(report: dict[str, Any]) -> dict[str, Any]:
    """The figures that results/compiled.json has of a report.json of `hybridlm compile`."""
    step = report["step"]
    names = ("fits", "lower_seconds", "compile_seconds", "flops", "kernels")
    found = {name: step.get(name) for name in names}
    found |= {name: step["memory"][name] for name in ("total", "available")}
    if "roofline" in step:
        found["step_seconds_at_least"] = step["step_seconds_at_least"]
        found["limit"] = step["roofline"]["limit"]
    return {"topology": report["topology"], **found}


def compiled(row: str) -> dict[str, Any]:
    """Compiles one row, in a process of its own.

    Raises:
      RunError: if the command ends without a report.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "out"
        subprocess.run([sys.executable, "-m", "hybridlm.cli", *command(row, out)], check=False)
        if not (out / "report.json").exists():
            raise RunError(f"{row} was not compiled: the lines above say why")
        return kept(read_json(out / "report.json"))


def _run(rows: list[str]) -> int:
    if wrong := [row for row in rows if row not in ROWS]:
        raise UserError(f"there is no row {wrong[0]!r}: there are {'; '.join(ROWS)}")
    found = read_json(FILE) if FILE.exists() else {}
    for row in rows or ROWS:
        if row not in found:
            found[row] = compiled(row)
            write_json(FILE, found)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rows", nargs="*", help="of README.md's costs; all by default")
    return errors.exit_code("compiled", lambda: _run(parser.parse_args().rows))


if __name__ == "__main__":
    sys.exit(main())
