"""Compiles the recipes of configs/scale for their slices, and keeps what the compiler says.

Run with the environment of `make aot`: `.venv-aot/bin/python benchmarks/compile_ahead.py [NAME ...]`.
One recipe takes minutes to hours of one CPU core. Results are kept in benchmarks/compile_ahead.json
after each; the table is printed from all that are there, for docs/scale.md.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

RESULTS = pathlib.Path("benchmarks/compile_ahead.json")
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
            check=False,
        )
        report = json.loads((pathlib.Path(folder) / "report.json").read_text())
    del report["config"]
    return report


def row(name: str, report: dict) -> str:
    """One line of the table; what the compiler refused has only its memory."""
    step = report["step"]
    memory = step["memory"]
    total = f"{memory['total'] / GIB:.1f}" if memory["total"] else "unknown"
    cells = [name, report["topology"], f"{total} of {memory['available'] / GIB:.1f}"]
    cells.append("yes" if step["fits"] else "no")
    if "roofline" in step:
        sent = sum(c["sent"] for c in step["collectives"].values())
        limit = step["roofline"]["limit"]
        cells += [
            f"{step['flops']:.3g}",
            f"{sent / GIB:.2f}",
            f"{step['step_seconds_at_least']:.3g} ({limit})",
        ]
    else:
        cells += ["", "", ""]
    return "| " + " | ".join([*cells, f"{step['compile_seconds']:.0f}"]) + " |"


def main(names: list[str]) -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in names or TARGETS:
        results[name] = compile_recipe(name)
        RESULTS.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    print(
        "| recipe | slice | HBM of a device, GiB | fits | FLOPs | GiB sent | step at least, s |"
        " compile s |\n|---|---|--:|---|--:|--:|--:|--:|"
    )
    for name, report in results.items():
        print(row(name, report))


if __name__ == "__main__":
    main(sys.argv[1:])
