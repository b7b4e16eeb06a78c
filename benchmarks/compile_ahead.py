"""Compiles the recipes of configs/scale for their slices, and keeps what the compiler says.

Run with the environment of `make aot`: `.venv-aot/bin/python benchmarks/compile_ahead.py [NAME ...]`.
One recipe takes minutes of one CPU core. Results are kept in benchmarks/compile_ahead.json after each;
the table of docs/scale.md is written from all that are there (--render: that alone).
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import train_cpu

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "compile_ahead.json"
PAGE = ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- compile_ahead: begin -->", "<!-- compile_ahead: end -->"
TARGETS = {"hybrid_1b": "v5e:4x4", "hybrid_7b": "v5p:4x4x4", "hybrid_70b": "v5p:8x8x8"}
GIB = 2**30


def compile_recipe(name: str) -> dict:
    """The report of one recipe, without its config."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "hybridlm.cli",
                "compile",
                "--topology",
                TARGETS[name],
                "--config",
                f"configs/scale/{name}.py",
                "--out",
                folder,
            ],
            cwd=ROOT,
            check=False,
        )
        report = json.loads((pathlib.Path(folder) / "report.json").read_text())
    del report["config"]
    return report


def rows() -> Iterator[str]:
    """The table of docs/scale.md."""
    yield (
        "| recipe | slice | HBM of a device, GiB | fits | FLOPs of a device | GB of HBM traffic | GB sent |"
        " a step takes at least | tokens/s at most | MFU at most | kernels in a step |"
    )
    yield "|---|---|--:|---|--:|--:|--:|--:|--:|--:|---|"
    for name, report in kept().items():
        yield f"| {' | '.join(cells(name, report))} |"


def cells(name: str, report: dict) -> list[str]:
    """One row of the table; what the compiler refused has only its memory."""
    step = report["step"]
    memory = step["memory"]
    total = f"{memory['total'] / GIB:.1f}" if memory["total"] else "unknown"
    available = f"{memory['available'] / GIB:.1f}" if memory["available"] else "unknown"
    found = [f"`{name}`", f"`{report['topology']}`", f"{total} of {available}"]
    found.append("yes" if step["fits"] else "no")
    if "roofline" not in step:
        return found + 7 * [""]
    sent = sum(c["sent"] for c in step["collectives"].values())
    return found + [
        f"{step['flops']:.3g}".replace("e+", "e"),
        f"{step['hbm_bytes'] / 1e9:,.0f}",
        f"{sent / 1e9:#.3g}".rstrip("."),
        f"{step['step_seconds_at_least']:.3g} s ({step['roofline']['limit']})",
        f"{float(f'{step["tokens_per_second_at_most"]:.3g}'):,.0f}",
        f"{100 * step['mfu_at_most']:.0f}%",
        kernels(step["kernels"]),
    ]


def kernels(executions: dict[str, int]) -> str:
    """Executions of the kernels of each op, forward and backward together."""
    ops: dict[str, int] = {}
    for kernel, times in executions.items():
        op = re.sub(r"_(forward|backward).*", "", kernel).replace("_", " ")
        ops[op] = ops.get(op, 0) + times
    return ", ".join(f"{op} {times}" for op, times in sorted(ops.items()))


def kept() -> dict:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--render", action="store_true", help="write the table into docs/scale.md")
    given = parser.parse_args()
    if unknown := set(given.names) - set(TARGETS):
        parser.error(f"no recipe is named {', '.join(sorted(unknown))}: {', '.join(TARGETS)}")
    if not given.render:
        for name in given.names or TARGETS:
            found = kept() | {name: compile_recipe(name)}
            ordered = {n: found[n] for n in TARGETS if n in found}
            RESULTS.write_text(json.dumps(ordered, indent=1, allow_nan=False) + "\n")
    train_cpu.write_between(BEGIN, END, "\n".join(rows()), PAGE)


if __name__ == "__main__":
    main()
