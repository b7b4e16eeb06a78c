"""Measures on a Hopper GPU what fits in a budget of seconds; a second call goes on where it stopped.

Before:  python -m benchmarks.gpu_visit wheels --wheels wheels      (with a package index)
There:   python -m benchmarks.gpu_visit run --seconds 540 --wheels wheels --copy results.jsonl
After:   python -m benchmarks.gpu_visit render --results results.jsonl      (writes benchmarks/gpu.md)
         python -m benchmarks.gpu_visit learn --results results.jsonl       (what "auto" obeys)
Try it:  python -m benchmarks.gpu_visit run --smoke --seconds 3000 --jobs 2  (a CPU, kernels interpreted)
"""

import argparse
import os
import pathlib
import sys
import time
from collections.abc import Sequence

BEGUN = time.monotonic()

from benchmarks.gpu_visit import learn, page, plan, runner, wheels  # noqa: E402
from benchmarks.gpu_visit.runner import ROOT  # noqa: E402
from hybridlm.errors import exit_code  # noqa: E402

HANG = 10.0  # seconds that a rehearsal waits for a planted hang
PRELOAD = ("jax", "jax.numpy", "numpy")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_visit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("run", "render", "learn", "wheels"))
    parser.add_argument("--seconds", type=float, default=540.0, help="the budget, never exceeded")
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "runs" / "gpu_visit")
    parser.add_argument("--copy", type=pathlib.Path, help="another file for the results")
    parser.add_argument("--wheels", type=pathlib.Path, help="a folder of wheels")
    parser.add_argument(
        "--results", type=pathlib.Path, help="to read; that of --folder if not given"
    )
    parser.add_argument("--jobs", type=int, default=plan.JOBS, help="compilations side by side")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="items that have one of these parts"
    )
    parser.add_argument(
        "--again", nargs="+", default=[], help="repeat items with one of these parts"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, for a CPU")
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="ITEM=KIND",
        help="plant a fault (faults.py) in an item",
    )
    options = parser.parse_args(arguments)
    results = options.results or options.folder / "results.jsonl"
    phases = plan.phases(options.smoke, options.jobs)
    if options.command == "run":
        return run(options, phases)
    if options.command == "wheels":
        size = wheels.download(options.wheels or ROOT / "wheels")
        print(f"{size / 2**20:.1f} MiB of wheels")
    elif options.command == "render":
        records, planned = runner.read(results), list(plan.names(phases))
        (ROOT / "benchmarks" / "gpu.md").write_text(page.render(records, planned))
    else:
        from kernels_pallas import measured

        rows = learn.rows(runner.read(results))
        (ROOT / "kernels_pallas" / "measured.json").write_text(measured.to_json(rows))
        print(f"{len(rows)} rows; `python -m kernels_pallas.aot.document` updates docs/kernels.md")
    return 0


def run(options: argparse.Namespace, phases: Sequence[runner.Phase]) -> int:
    """Runs the plan; returns 0 if every item is done."""
    folder = options.folder.resolve()
    results = runner.Results(folder / "results.jsonl", options.copy)
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    if options.wheels:
        site = folder / "site"
        wrong = "" if site.exists() else wheels.install(options.wheels, site)
        results.write({"kind": "wheels", "wrong": wrong})
        path.insert(0, str(site))
    environment = {
        "PYTHONPATH": os.pathsep.join(part for part in path if part),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes, and torch, need memory
        "CUDA_CACHE_PATH": str(folder / "cuda_cache"),
        "TRITON_CACHE_DIR": str(folder / "triton_cache"),
    }
    if options.smoke:
        environment["JAX_PLATFORMS"] = "cpu"
    faults = faults_of(options.fault, list(plan.names(phases)))
    made = runner.Runner(
        results,
        folder / "logs",
        options.seconds,
        begun=BEGUN,
        environment=environment,
        preload=PRELOAD,
        faults=faults,
    )
    chosen = [
        p._replace(
            items=tuple(
                i._replace(limit=HANG) if faults.get(i.name, "").startswith("hang") else i
                for i in p.items
                if any(part in i.name for part in options.only)
            )
        )
        for p in phases
    ]
    endings = made.run(chosen, options.again)
    counts: dict[str, int] = {}
    for ending in endings.values():
        counts[ending["outcome"]] = counts.get(ending["outcome"], 0) + 1
    spent = time.monotonic() - BEGUN
    print(f"{spent:.0f} s: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    return int(set(counts) != {"done"})


def faults_of(words: Sequence[str], items: Sequence[str]) -> dict[str, str]:
    """The planted faults by item.

    Raises:
      SystemExit: for an item that the plan does not have.
    """
    found = {}
    for word in words:
        name, _, kind = word.rpartition("=")
        if name not in items:
            raise SystemExit(f"--fault: the plan has no item {name!r}.")
        found[name] = kind
    return found


if __name__ == "__main__":
    sys.exit(exit_code("gpu_visit", main))
