"""The experiment on retrieval heads at 100M parameters: one run after the other, each resumable."""

import math
import shutil

from benchmarks.gpu_visit import faults
from experiments.large_window_laziness.arms import ARMS
from experiments.large_window_laziness.runs import run
from hybridlm.settings import json_text

SEED = 0


def arm(out, arm: str, smoke: bool, compile_only: bool) -> None:
    """Trains a run and records every measurement, or only compiles its programs.

    Raises:
      FloatingPointError: where a measured loss is not finite.
    """
    scale = "main" if smoke else "large"
    chosen = ARMS[scale][arm.replace("w512", "w32") if smoke else arm]
    folder = (
        out.path.resolve().parent / ("compiled" if compile_only else "retrieval") / arm / str(SEED)
    )
    if compile_only:
        shutil.rmtree(folder, ignore_errors=True)
        run(chosen, SEED, folder, steps=1, log=lambda line: None, ends=False)
        out.write("compiled", retrieval=arm)
        return

    def log(line: str) -> None:
        measured = json_text.loads((folder / "curve.jsonl").read_text().splitlines()[-1])
        losses = {n: measured[n] for n in ("local_nll", "copied_nll")}
        if not all(math.isfinite(faults.poisoned(x)) for x in losses.values()):
            raise FloatingPointError(f"a loss is not finite at step {measured['step']}")
        out.write(
            "retrieval",
            arm=chosen.name,
            steps=chosen.steps,
            step=measured["step"],
            accuracy=measured["accuracy"],
            mass=max((head[2] for head in measured["heads"]), default=0.0),
            seconds=measured["wall_seconds"],
            **losses,
        )

    run(chosen, SEED, folder, steps=2 if smoke else None, log=log, ends=False)
