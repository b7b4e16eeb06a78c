"""Time from the command `hybridlm train` to its first step, with an empty and a filled cache.

Starts whole processes and ends each when it prints its first step. The tokens are on disk before.
Then compiles the training step of Gated DeltaNet and of windowed attention, each in a process without
a cache. Writes two tables into benchmarks/README.md:

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

from hybridlm.errors import exit_code

ROOT = pathlib.Path(__file__).resolve().parent.parent
RECIPES = ("configs/demo.py", "configs/mixers/gdn.py")
# A unit is three mixers and a layer of full attention, in a model of 4 layers.
COMPILED = {"one layer": ("model.depth=1", "model.pattern=mixer"), "three and a full layer": ()}
MIXERS = {
    "windowed attention": "configs/mixers/sliding_window.py",
    "Gated DeltaNet": "configs/mixers/gdn.py",
}
PROGRAM = """
import json, sys, time, jax
from hybridlm import config as configs
from hybridlm.train import setup

jax.config.update("jax_enable_compilation_cache", False)
overrides = [tuple(word.split("=", 1)) for word in sys.argv[2:]]
config, tokenizer = setup.resolve(configs.load(sys.argv[1], overrides))
start = time.process_time()
lowered = setup.lower_step(config, tokenizer.token_bytes(), jax.devices())
middle = time.process_time()
lowered.step.compile()
print(json.dumps({"lower": middle - start, "compile": time.process_time() - middle}))
"""
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


def compiling(recipe: str, overrides: Sequence[str]) -> dict[str, float]:
    """CPU seconds of tracing and lowering a recipe's training step, and of compiling it."""
    command = [sys.executable, "-c", PROGRAM, recipe, *overrides]
    variables = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


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
    steps = []
    for number in range(rounds):
        for layers, overrides in COMPILED.items():
            for mixer, recipe in MIXERS.items():
                figures = compiling(recipe, overrides)
                steps.append({"layers": layers, "mixer": mixer, **figures})
                train_cpu.say(f"round {number}, {layers}, {mixer}: {figures}")
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": train_cpu.machine(),
        "load_at_start": train_cpu.load(),
        "rounds": rounds,
        "records": records,
        "steps": steps,
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
    lines += ["", *_steps(results["steps"])]
    lines += [
        "",
        f"- {results['date']}, {results['machine']['cpu']}, {results['machine']['cores']} cores, load"
        f" {results['load_at_start']} at the start; medians of {results['rounds']} rounds. Other programs"
        " lengthen wall times; CPU time is of all threads of the process.",
    ]
    return "\n".join(lines)


def _steps(records: Sequence[dict]) -> list[str]:
    """A table of CPU seconds of the training step: mixers side by side."""

    def median(layers: str, mixer: str, figure: str) -> float:
        return statistics.median(
            r[figure] for r in records if (r["layers"], r["mixer"]) == (layers, mixer)
        )

    lines = ["| CPU, s | " + " | ".join(MIXERS) + " | ratio |", "|---|---:|---:|---:|"]
    for layers in COMPILED:
        for figure, title in (("lower", "tracing and lowering"), ("compile", "compiling")):
            base, other = (median(layers, mixer, figure) for mixer in MIXERS)
            lines.append(f"| {layers}: {title} | {base:.1f} | {other:.1f} | {other / base:.2f} |")
    return lines


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
    sys.exit(exit_code("first_step", main))
