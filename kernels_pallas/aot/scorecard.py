"""The static scorecard: compiles each case in its own process, writes JSON and Markdown."""

import concurrent.futures
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from kernels_pallas.aot.chips import CHIPS

GROWTH = 1.1  # the check fails if bundles or spills exceed the committed ones times this
TIMEOUT = 900  # seconds of one compilation
CALLERS = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")  # the caller's settings, not passed on


def compile_one(chip: str, kind: str, name: str, shapes=()) -> dict:
    """The result of `worker` for one call and one chip."""
    with tempfile.TemporaryDirectory(prefix="aot-") as dump:
        command = [sys.executable, "-m", "kernels_pallas.aot.worker", chip, dump, kind, name]
        # Figures are for the compiler's default settings, and with a cache there would be no dumps.
        environment = {k: v for k, v in os.environ.items() if k not in CALLERS}
        try:
            done = subprocess.run(
                command + list(shapes),
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            return dict(compiles=False, reason=f"no result within {TIMEOUT} s")
    found = re.search(r"^RESULT (.*)$", done.stdout, re.M)
    if not found:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return dict(compiles=False, reason=f"the process ended: {last[:300]}")
    result = json.loads(found[1])
    if CHIPS[chip].platform == "cuda":
        result["kernels"] = gpu_kernels(done.stdout + done.stderr)
    return result


def gpu_kernels(text: str) -> dict:
    """Stack, spills and registers of each kernel, as printed by ptxas."""
    kernels = {}
    pattern = (
        r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads\s+.*?Used (\d+) registers"
    )
    for name, stack, stores, loads, registers in re.findall(pattern, text, re.S):
        kernels[name] = dict(
            stack=int(stack),
            spill_stores=int(stores),
            spill_loads=int(loads),
            registers=int(registers),
        )
    return kernels


def compile_all(cases, chips, jobs: int = 1, log=print, done=lambda results: None) -> dict:
    """`{case name: {chip: result}}` for every case on every chip of its platforms; calls `done` with
    the results so far after each."""
    work = [
        (case, chip) for chip in chips for case in cases if CHIPS[chip].platform in case.platforms
    ]
    results: dict = {}

    def run(item):
        case, chip = item
        return case, chip, compile_one(chip, "registered", case.name)

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for case, chip, result in pool.map(run, work):
            results.setdefault(case.name, {})[chip] = rated(result, case, CHIPS[chip])
            log(f"{case.name} on {chip}: {summary(results[case.name][chip])}", flush=True)
            done(results)
    return results


def rated(result: dict, case, chip) -> dict:
    """A result with bundles per token and the chip's roofline added."""
    if not result["compiles"]:
        return result
    kernels = {}
    for name, kernel in result["kernels"].items():
        if "bundles" in kernel:
            bundles, slots, capacity = (kernel[k] for k in ("bundles", "slots", "capacity"))
            kernel = dict(
                per_step=round(bundles / kernel["steps"], 1),
                per_token=round(bundles / case.tokens, 3),
                mxu=round(slots["MXU"] / (capacity["MXU"] * bundles), 3),
                **{k: kernel[k] for k in ("steps", "code", "vmem", "smem", "spills")},
                **{k: kernel[k] for k in ("inner_spills", "unknown", "open_loops")},
            )
        kernels[name] = kernel
    result = result | dict(kernels=kernels)
    per_token = sum(k.get("per_token", 0) for k in kernels.values())
    if per_token:
        result["per_token"] = round(per_token, 3)
    if case.flops:
        seconds = dict(compute=case.flops / chip.flops, memory=result["bytes"] / chip.bandwidth)
        result["roofline_us"] = {k: round(1e6 * v, 1) for k, v in seconds.items()}
    return result


def summary(result: dict) -> str:
    if not result["compiles"]:
        return f"does not compile: {result['reason']}"
    parts = [f"{result['seconds']} s"]
    for name, kernel in result["kernels"].items():
        if "per_token" in kernel:
            parts.append(
                f"{name} {kernel['per_token']} bundles per token, {kernel['spills']} spills"
            )
        else:
            parts.append(f"{name} {kernel}")
    return "; ".join(parts)


def worse(new: dict, committed: dict) -> list[str]:
    """What compiled in `committed` and no longer does, or has grown by more than `GROWTH`."""
    found = []
    for name, chips in new.items():
        for chip, result in chips.items():
            old = committed.get(name, {}).get(chip)
            where = f"{name} on {chip}"
            if not old or not old["compiles"]:
                continue
            if not result["compiles"]:
                found.append(f"{where} no longer compiles: {result['reason']}")
                continue
            for kernel, was in old["kernels"].items():
                now = result["kernels"].get(kernel)
                if now is None:
                    found.append(f"{where}: kernel {kernel} is gone")
                    continue
                for key in ("per_token", "spills", "inner_spills", "spill_stores"):
                    if key in was and now[key] > GROWTH * was[key]:
                        found.append(f"{where}: {kernel} has {key} {now[key]}, had {was[key]}")
    return found


def versions() -> dict:
    """Versions of the compilers: figures differ between versions."""
    packages = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "deltanet-tpu")
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def read(path: pathlib.Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else dict(versions={}, cases={})


def write(path: pathlib.Path, results: dict, order) -> dict:
    """Adds `results` to the scorecard at `path` and writes its Markdown page; returns all cases."""
    cases = read(path)["cases"]
    for name, chips in results.items():
        cases[name] = cases.get(name, {}) | chips
    cases = {
        name: cases[name] for name in [*order, *sorted(set(cases) - set(order))] if name in cases
    }
    content = dict(versions=versions(), cases=cases)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + os.linesep)
    path.with_suffix(".md").write_text(markdown(content))
    return cases


def markdown(content: dict) -> str:
    """The scorecard as tables, one per chip."""
    made_with = ", ".join(f"{k} {v}" for k, v in content["versions"].items())
    lines = [
        "# Static scorecard",
        "",
        f"Made by `python -m kernels_pallas.aot` ({made_with}). The programs were compiled for chips",
        "that were not attached; nothing here was timed. [docs/scorecard.md](../docs/scorecard.md) explains the",
        "columns.",
    ]
    for chip in CHIPS:
        rows = []
        for name, chips in content["cases"].items():
            if chip in chips:
                rows += _rows(name, chips[chip])
        if not rows:
            continue
        lines += [
            "",
            f"## {chip}",
            "",
            "| call | kernel | bundles per token | per step | MXU slots | spills (inner) | VMEM MiB "
            "| compile s | roofline µs: compute, memory |",
            "|---|---|--:|--:|--:|--:|--:|--:|--:|",
            *rows,
        ]
    return "\n".join(lines) + "\n"


def _rows(name: str, result: dict) -> list[str]:
    if not result["compiles"]:
        return [f"| {name} | does not compile: {result['reason'][:160]} | | | | | | | |"]
    roofline = result.get("roofline_us", {})
    roof = f"{roofline['compute']:.0f}, {roofline['memory']:.0f}" if roofline else ""
    rows = [
        f"| {name} | all | {result.get('per_token', '')} | | | | | {result['seconds']:.1f} | {roof} |"
    ]
    for kernel, k in result["kernels"].items():
        if "per_token" in k:
            rows.append(
                f"| | {kernel} | {k['per_token']} | {k['per_step']:.0f} | {100 * k['mxu']:.0f}% "
                f"| {k['spills']} ({k['inner_spills']}) | {k['vmem'] / 2**20:.1f} | | |"
            )
        else:
            rows.append(
                f"| | {kernel}: {k['registers']} registers | | | | {k['spill_stores']} B | | | |"
            )
    return rows
