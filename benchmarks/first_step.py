"""Time from the command `hybridlm train` to its first step, with an empty and a filled cache.

Starts whole processes and ends each when it prints its first step. The tokens are on disk before.
Writes a table into benchmarks/README.md:

    python benchmarks/first_step.py --json benchmarks/first_step.json
"""

import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import train_cpu

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECIPES = ("configs/demo.py", "configs/mixers/gdn.py")
BEGIN, END = "<!-- first step: written by first_step.py -->", "<!-- first step: end -->"


def first_step(recipe: str, tokens: pathlib.Path, cache: pathlib.Path) -> dict[str, float]:
    """Seconds (`wall`, and `cpu` of all threads) from the command to the line of step 1.

    Raises:
      SystemExit: if the command ends before.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hybridlm.cli", "train", "--config", recipe]
        command += ["--workdir", f"{folder}/run", "--config.train.log_every=1"]
        command += [f"--config.data.token_cache={tokens}"]
        variables = {k: v for k, v in os.environ.items() if "CACHE" not in k}
        variables |= {"XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}
        before, start = _cpu(), time.perf_counter()
        with subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True
        ) as process:
            if not any(line.startswith("step ") for line in process.stdout):
                raise SystemExit(f"{' '.join(command)} ended without a step")
            wall = time.perf_counter() - start
            process.kill()
        return {"wall": wall, "cpu": _cpu() - before}


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(rounds: int) -> dict:
    """Each recipe `rounds` times with an empty cache, each followed by a start with a filled one."""
    records = []
    with tempfile.TemporaryDirectory() as folder:
        tokens = pathlib.Path(folder, "tokens")
        for recipe in RECIPES:
            for number in range(rounds):
                cache = pathlib.Path(folder, recipe.replace("/", "-"), str(number))
                for kind in ("cold", "warm"):
                    if kind == "cold" and not tokens.exists():
                        first_step(recipe, tokens, pathlib.Path(folder, "unused"))
                    figures = first_step(recipe, tokens, cache)
                    records.append({"recipe": recipe, "cache": kind, **figures})
                    train_cpu.say(f"{recipe}, {kind}: {figures}")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": train_cpu.machine(),
        "load_at_start": train_cpu.load(),
        "rounds": rounds,
        "records": records,
    }


def render(results: dict) -> str:
    lines = [
        "| recipe | cold: wall, s | CPU, s | warm: wall, s | CPU, s | CPU, cold / warm |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for recipe in dict.fromkeys(r["recipe"] for r in results["records"]):

        def median(cache: str, figure: str, recipe: str = recipe) -> float:
            found = [r for r in results["records"] if (r["recipe"], r["cache"]) == (recipe, cache)]
            return statistics.median(r[figure] for r in found)

        cells = [f"{median(c, f):.1f}" for c in ("cold", "warm") for f in ("wall", "cpu")]
        ratio = median("cold", "cpu") / median("warm", "cpu")
        lines.append(f"| `{recipe}` | {' | '.join(cells)} | {ratio:.1f} |")
    lines += [
        "",
        f"- {results['date']}, {results['machine']['cpu']}, {results['machine']['cores']} cores, load"
        f" {results['load_at_start']} at the start; medians of {results['rounds']} rounds. Other programs"
        " lengthen wall times; CPU time is of all threads of the process.",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = train_cpu.argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    results = json.loads(options.render.read_text()) if options.render else measure(options.rounds)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    train_cpu.write_between(BEGIN, END, render(results))
    print(render(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
