"""Training speed on a CPU: hybridlm beside PyTorch + transformers and jax-linear-attention.

One hybrid (8 layers, width 256, window 128 and full attention in turn, 1,024 bytes a sequence),
the same data, float32, one optimizer step after another. Each library runs in a process and an
environment of its own; peers' environments are made under benchmarks/.envs when they are missing.
Every variant of a library is tried once, the fastest is kept, and then the libraries take turns.

Run:     python benchmarks/train_cpu.py --json benchmarks/train_cpu.json
Table:   python benchmarks/train_cpu.py --render benchmarks/train_cpu.json   (into the README)
Time:    minutes; most of it goes to trying variants, torch.compile's above all.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import environments
from environments import TORCH, Unavailable, last_line

from hybridlm.errors import exit_code

HERE = pathlib.Path(__file__).resolve().parent
ENVS, README = HERE / ".envs", HERE / "README.md"
BEGIN, END = "<!-- train_cpu: begin -->", "<!-- train_cpu: end -->"
OURS, ONE_DOCUMENT = "hybridlm", "one document"


@dataclasses.dataclass(frozen=True)
class Library:
    """One contestant.

    Attributes:
      key: what --env and --only call it.
      name: for tables.
      worker: file in peers/.
      python: finds the interpreter that its environment is made with.
      requirements: pip's arguments, one command after the other; () runs in `python` itself.
      check: looks at what pip is about to install, before it does.
    """

    key: str
    name: str
    worker: str
    python: Callable[[], str]
    requirements: tuple[tuple[str, ...], ...] = ()
    check: Callable[[str], None] = lambda python: None


# --- environments -----------------------------------------------------------------------------


LIBRARIES = (
    Library(OURS, "hybridlm", "hybridlm_worker.py", lambda: sys.executable),
    Library(
        "torch",
        "PyTorch + transformers",
        "torch_gemma3.py",
        environments.python_311,
        # torch first and alone: another package's range would bring the newest CUDA build.
        ((TORCH,), (TORCH, "transformers==5.23.0", "numpy", "setuptools")),
        environments.refuse_cuda_torch,
    ),
    Library(
        "jla",
        "jax-linear-attention",
        "jla_hybrid.py",
        lambda: sys.executable,
        # flax is what our mixers import, which mixers_cpu.py times beside the library's.
        (("jax==0.11.2", "jax-linear-attention==0.1.0", "optax", "flax==0.12.12"),),
    ),
)


def interpreter(library: Library, given: pathlib.Path | None) -> str:
    """The Python that runs the library's worker; makes its environment where there is none.

    Raises:
      Unavailable: where it cannot be made.
    """
    if given is not None:
        path = environments.python_of(given)
        if not path.exists():
            raise Unavailable(f"--env {library.key}={given} is no environment: {path} is not there")
        return str(path)
    if not library.requirements:
        return library.python()
    folder = ENVS / library.key
    say(f"{library.name} runs in {folder.relative_to(HERE.parent)}, made where it is missing")
    return environments.make(folder, library.python(), library.requirements, library.check)


# --- runs -------------------------------------------------------------------------------------


def work(library: Library, python: str, *arguments: str) -> Any:
    """What the worker prints last, read as JSON.

    Raises:
      Unavailable: where it fails, with its last word.
    """
    command = [python, str(HERE / "peers" / library.worker), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environments.variables())
    if done.returncode:
        raise Unavailable(f"{library.name} {' '.join(arguments)} failed: {last_line(done.stderr)}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def fastest_variant(library: Library, python: str, options: argparse.Namespace) -> tuple[str, dict]:
    """Runs each variant briefly; the fastest's name, and each one's best tokens/s or failure."""
    tried: dict[str, float | str] = {}
    names = work(library, python, "--list")
    if len(names) == 1:
        return names[0], tried
    for name in names:
        try:
            figures = work(
                library,
                python,
                "--variant",
                name,
                "--steps",
                str(options.trial_steps),
                "--warmup",
                str(options.warmup),
                "--seed",
                str(options.seed),
            )
        except Unavailable as error:
            tried[name] = str(error)
        else:
            timing = figures["cases"][ONE_DOCUMENT]
            slowdown = timing["step_seconds_p50"] / min(timing["step_seconds"])
            tried[name] = timing["tokens_per_second"] * slowdown
        say(f"  {library.name}, {name}: {_trial(tried[name])}")
    speeds = {name: speed for name, speed in tried.items() if not isinstance(speed, str)}
    if not speeds:
        raise Unavailable(next(iter(tried.values())))
    return max(speeds, key=speeds.get), tried


def measure(options: argparse.Namespace) -> dict:
    """Environments, variants, then the rounds: every library once in each, in turn."""
    results: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "load_at_start": load(),
        "options": {n: getattr(options, n) for n in ("rounds", "steps", "warmup", "seed")},
        "libraries": {},
        "skipped": {},
        "rounds": [],
    }
    pythons, start = {}, time.monotonic()
    for library in LIBRARIES:
        if options.only and library.key not in options.only:
            continue
        try:
            pythons[library.key] = interpreter(library, options.env.get(library.key))
            variant, tried = fastest_variant(library, pythons[library.key], options)
        except Unavailable as error:
            pythons.pop(library.key, None)
            results["skipped"][library.key] = str(error)
            say(f"skipping {library.name}: {error}")
            continue
        results["libraries"][library.key] = {
            "name": library.name,
            "variant": variant,
            "variants_tried": tried,
        }
    for number in range(options.rounds):
        figures = {}
        for library in LIBRARIES:
            if library.key not in pythons:
                continue
            variant = results["libraries"][library.key]["variant"]
            figures[library.key] = work(
                library,
                pythons[library.key],
                "--variant",
                variant,
                "--steps",
                str(options.steps),
                "--warmup",
                str(options.warmup),
                "--seed",
                str(options.seed),
            )
            for case, timing in figures[library.key]["cases"].items():
                say(f"round {number + 1}: {library.name}, {case}: {_timing(timing)}")
        results["rounds"].append(figures)
    results["minutes"] = (time.monotonic() - start) / 60
    results["summary"] = summary(results)
    return results


def summary(results: dict) -> dict:
    """Medians over rounds, and hybridlm over the faster peer, round by round.

    `tokens_per_second` by library and case: median, lowest and highest round. `ratios` by
    hybridlm's case, then by peer and "faster peer": the same of the rounds' ratios.
    """
    rounds = results["rounds"]
    speeds = {
        key: {
            case: _spread([r[key]["cases"][case]["tokens_per_second"] for r in rounds])
            for case in rounds[0][key]["cases"]
        }
        for key in rounds[0]
    }
    peers = [key for key in rounds[0] if key != OURS]
    ratios = {}
    for case in rounds[0].get(OURS, {}).get("cases", {}) if peers else {}:
        ours = [r[OURS]["cases"][case]["tokens_per_second"] for r in rounds]
        theirs = {
            p: [r[p]["cases"][ONE_DOCUMENT]["tokens_per_second"] for r in rounds] for p in peers
        }
        theirs["faster peer"] = [max(speeds) for speeds in zip(*theirs.values())]
        ratios[case] = {p: _spread([o / t for o, t in zip(ours, ts)]) for p, ts in theirs.items()}
    return {"tokens_per_second": speeds, "ratios": ratios}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def machine() -> dict[str, Any]:
    """The processor's name, the cores this process may use, and the system."""
    model = platform.processor()
    if (info := pathlib.Path("/proc/cpuinfo")).exists():
        lines = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count()
    return {"cpu": model or "unknown", "cores": cores, "system": platform.system()}


def load() -> float | None:
    """Programs that want to run, averaged over the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


# --- words ------------------------------------------------------------------------------------


def render(results: dict) -> str:
    """The results in Markdown: a table, and what it was measured with."""
    cores, options = results["machine"]["cores"], results["options"]
    lines = [
        "| library | batch | tokens/s, median of rounds | lowest to highest | step p50 / p90, s"
        " | float32 matmul | hybridlm is |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    ratios = results["summary"]["ratios"].get(ONE_DOCUMENT, {})
    for key, about in results["libraries"].items():
        matmul = max(r[key]["matmul_flops"] for r in results["rounds"])
        for case, speed in results["summary"]["tokens_per_second"][key].items():
            timings = [r[key]["cases"][case] for r in results["rounds"]]
            p50, p90 = (
                statistics.median(t[f"step_seconds_{name}"] for t in timings)
                for name in ("p50", "p90")
            )
            ratio = f"{ratios[key]['median']:.2f} x as fast" if key in ratios else ""
            lines.append(
                f"| {about['name']} | {case} | {speed['median']:,.0f} | {speed['low']:,.0f} to"
                f" {speed['high']:,.0f} | {p50:.2f} / {p90:.2f} | {matmul / 1e9:.0f} GFLOP/s"
                f" | {ratio} |"
            )
    lines.append("")
    for case, by_peer in results["summary"]["ratios"].items():
        r = by_peer["faster peer"]
        lines.append(
            f"- hybridlm, {case}, against the faster peer of the same round:"
            f" **{r['median']:.2f}** ({r['low']:.2f} to {r['high']:.2f})."
        )
    lines.append(
        f"- {results['date']}, {results['machine']['cpu']}, {cores} cores, load"
        f" {results['load_at_start']} at the start;"
        f" {options['rounds']} rounds of {options['steps']} steps after {options['warmup']};"
        f" {results['minutes']:.0f} minutes in all."
    )
    for key, about in results["libraries"].items():
        first = results["rounds"][0][key]
        loss = first["cases"][ONE_DOCUMENT]
        timings = [r[key]["cases"][ONE_DOCUMENT] for r in results["rounds"]]
        busy = statistics.median(t["busy_cores"] for t in timings)
        found = ", ".join(f"{n} {v}" for n, v in first["versions"].items())
        lines.append(
            f"- {about['name']} ({about['variant']}): {first['parameters']:,} parameters,"
            f" {first['dtype']}, {first['threads']}, {busy:.1f} cores busy; loss"
            f" {loss['loss_first']:.3f} to {loss['loss_last']:.3f}; {found}."
        )
        for name, speed in about["variants_tried"].items():
            lines.append(f"  - tried {name}: {_trial(speed)} in its best step")
    for key, reason in results["skipped"].items():
        lines.append(f"- {key} was not measured: {reason}.")
    return "\n".join(lines)


def write_between(begin: str, end: str, text: str, page: pathlib.Path = README) -> None:
    """Puts `text` between two marks of a page."""
    before, mark, rest = page.read_text().partition(begin)
    _, found, after = rest.partition(end)
    if not (mark and found):
        raise SystemExit(f"{page} lacks the lines {begin} and {end}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def doubts(results: dict) -> list[str]:
    """Sentences on what makes the figures unfit to publish."""
    cores, found = results["machine"]["cores"], []
    for key, about in results["libraries"].items():
        for case, speed in results["summary"]["tokens_per_second"][key].items():
            timings = [r[key]["cases"][case] for r in results["rounds"]]
            where = f"{about['name']}, {case}"
            if not all(t["loss_plausible"] for t in timings):
                found.append(f"{where}: the loss does not start near ln 320 and fall")
            if (others := max(t["other_cores"] or 0 for t in timings)) > 0.1:
                found.append(f"{where}: other programs had {others:.1f} of {cores} cores")
            if speed["high"] > 1.1 * speed["low"]:
                found.append(f"{where}: rounds differ by more than 10%")
    return found


def _timing(timing: dict) -> str:
    return (
        f"{timing['tokens_per_second']:,.0f} tokens/s, {timing['busy_cores']:.1f} cores, loss"
        f" {timing['loss_first']:.3f} to {timing['loss_last']:.3f}"
    )


def _trial(speed: float | str) -> str:
    return speed if isinstance(speed, str) else f"{speed:,.0f} tokens/s"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _env(text: str) -> tuple[str, pathlib.Path]:
    key, separator, folder = text.partition("=")
    keys = [library.key for library in LIBRARIES]
    if not separator or key not in keys:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR with NAME of {', '.join(keys)}")
    return key, pathlib.Path(folder)


def argument_parser(description: str) -> argparse.ArgumentParser:
    """One with what all these scripts take: where results go, and whether they are only shown."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter)
    parser.add_argument("--json", type=pathlib.Path, metavar="OUT", help="keep the results there")
    parser.add_argument("--render", type=pathlib.Path, metavar="JSON", help="only fill the README")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__)
    parser.add_argument(
        "--env",
        type=_env,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="use this virtual environment for hybridlm, torch or jla",
    )
    parser.add_argument("--only", action="append", choices=[x.key for x in LIBRARIES])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a round")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--trial_steps", type=int, default=4, help="timed steps of a variant")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if min(options.rounds, options.steps, options.warmup, options.trial_steps) < 1:
        parser.error("--rounds, --steps, --warmup and --trial_steps must be at least 1")
    if options.render:
        write_between(BEGIN, END, render(json.loads(options.render.read_text())))
        return 0
    options.env = dict(options.env)
    if (busy := load()) is not None and busy > 0.5:
        say(f"the load is {busy}: other programs run, and the figures will be of little worth")
    try:
        results = measure(options)
    except Unavailable as error:
        say(f"the run broke off: {error}")
        return 1
    if not results["libraries"]:
        say("nothing could be measured")
        return 1
    results["doubts"] = doubts(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    print(render(results))
    for doubt in results["doubts"]:
        say(f"doubt: {doubt}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("train_cpu", main))
