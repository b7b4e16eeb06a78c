"""What the workers of train_cpu.py share: the shape, the data, the clock, the line they print.

Needs numpy alone and runs on Python 3.11, because every worker imports it in its own environment.
"""

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

BATCH, TIME = 4, 1024
WIDTH, DEPTH, HEADS, HEAD_DIM, MLP = 256, 8, 4, 64, 768
WINDOW = 128  # keys a query sees, its own included; even layers have it, odd ones are full
VOCAB = 320  # 256 bytes, padded as hybridlm pads its byte tokenizer
ROPE_THETA, NORM_EPS, INIT_STD = 1e4, 1e-6, 0.02
LEARNING_RATE, B1, B2, ADAM_EPS, WEIGHT_DECAY, CLIP_NORM = 1e-3, 0.9, 0.95, 1e-8, 0.1, 1.0

Step = Callable[[np.ndarray], float]
Variant = Callable[[argparse.Namespace], dict]


def streams(seed: int) -> Iterator[np.ndarray]:
    """Random bytes (batch, time + 1), int32: inputs and, one later, targets. No two are equal."""
    generator = np.random.default_rng(seed)
    while True:
        yield generator.integers(0, 256, (BATCH, TIME + 1), dtype=np.int32)


def time_steps(step: Step, options: argparse.Namespace) -> dict:
    """Runs `step` on fresh batches until warm, then times it; a step ends when its loss is here.

    Returns tokens_per_second (of the median step), seconds of each step, their p50 and p90, the
    losses of the first and the last step run, busy_cores (this process's processor time over
    time) and other_cores (that of all other programs; None where the system does not say).
    """
    seconds, losses = [], []
    for number, tokens in enumerate(streams(options.seed)):
        if number == options.warmup + options.steps:
            break
        if number == options.warmup:
            began, own, all_programs = time.perf_counter(), time.process_time(), busy_seconds()
        start = time.perf_counter()
        losses.append(step(tokens))
        if number >= options.warmup:
            seconds.append(time.perf_counter() - start)
    whole, own = time.perf_counter() - began, time.process_time() - own
    return {
        "tokens_per_second": BATCH * TIME / statistics.median(seconds),
        "step_seconds_p50": statistics.median(seconds),
        "step_seconds_p90": float(np.quantile(seconds, 0.9)),
        "step_seconds": seconds,
        "busy_cores": own / whole,
        "other_cores": all_programs and (busy_seconds() - all_programs - own) / whole,
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "loss_plausible": all(map(math.isfinite, losses))
        and abs(losses[0] - math.log(VOCAB)) < 0.3
        and losses[-1] < losses[0],
    }


def best_seconds(call: Callable[[], object], budget: float = 0.5) -> float:
    """The shortest of repeated calls, the first left out."""
    call()
    best, end = math.inf, time.perf_counter() + budget
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def matmul_flops(multiply: Callable[[], object], size: int) -> float:
    """FLOP/s of `multiply`, a product of two square float32 matrices."""
    return 2 * size**3 / best_seconds(multiply)


def busy_seconds() -> float | None:
    """Seconds that the machine's cores have worked since it started, stolen time included."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, _idle, _wait, irq, soft_irq, steal = map(
                int, file.readline().split()[1:9]
            )
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")


def cores() -> int:
    """Those this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def versions(*modules: str) -> dict[str, str]:
    """Python's version, and those of modules already imported."""
    found = {name: sys.modules[name].__version__ for name in modules}
    return {"python": platform.python_version(), **found}


def main(doc: str, variants: dict[str, Variant]) -> None:
    """The command line of a worker: runs one variant and prints one JSON line, its figures.

    `variants` are ways to run the same model in the same library; the driver tries each of them.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--list", action="store_true", help="print the variants' names as JSON")
    parser.add_argument("--variant", choices=list(variants), default=next(iter(variants)))
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them")
    parser.add_argument("--seed", type=int, default=0, help="of the data and the parameters")
    options = parser.parse_args()
    if options.list:
        print(json.dumps(list(variants), allow_nan=False))
        return
    if options.steps < 1 or options.warmup < 1:
        parser.error("--steps and --warmup must be at least 1")
    figures = variants[options.variant](options)
    print(json.dumps({"variant": options.variant, **figures}, allow_nan=False), flush=True)
