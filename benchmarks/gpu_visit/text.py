"""The experiment on retrieval heads on real text: one arm with all its seeds after the other."""

import math
import pathlib
import shutil
from typing import Any

from benchmarks.gpu_visit import faults
from experiments.large_window_laziness.text import corpus
from experiments.large_window_laziness.text.__main__ import steps_of
from experiments.large_window_laziness.text.arms import SEEDS, SMOKE, TEXT, TextScale, arms
from experiments.large_window_laziness.text.measure import HeldOut
from experiments.large_window_laziness.text.runs import run
from hybridlm.settings import json_text

SECONDS = 450.0  # that the steps of all runs are scaled to


def prepare(out, smoke: bool) -> None:
    """Makes the tokenizer and the tokens, once."""
    made = corpus.prepare(_folder(out) / "corpus", _scale(smoke))
    out.write("text corpus", **made.facts)


def compiled(out, positions: str, smoke: bool) -> None:
    """Runs one step, and every measurement once, so that the arms find compiled programs."""
    scale = _scale(smoke)
    (arm, *_) = [arm for arm in arms(scale) if arm.positions == positions]
    folder = _folder(out).with_name("compiled") / f"text-{positions}"
    shutil.rmtree(folder, ignore_errors=True)
    run(arm, 0, folder, _held_out(out, scale), 1, log=lambda line: None)
    out.write("compiled", text=positions)


def arm(out, arm: str, smoke: bool) -> None:
    """Trains the seeds of an arm and records every measurement and every end, whole: the runs' own folders
    stay on the machine.

    Raises:
      FloatingPointError: where a measured loss is not finite.
    """
    scale, folder = _scale(smoke), _folder(out)
    (chosen,) = [one for one in arms(scale) if one.name == arm]
    held_out = _held_out(out, scale)
    seeds = SEEDS[:1] if smoke else SEEDS
    seconds = None if smoke else SECONDS
    steps = steps_of(folder, scale, held_out, seconds, len(arms(scale)) * len(SEEDS))
    for seed in seeds:
        own = folder / arm / str(seed)

        def log(line: str, seed=seed, own=own) -> None:
            measured = json_text.loads((own / "curve.jsonl").read_text().splitlines()[-1])
            if not math.isfinite(faults.poisoned(measured["plain_nll"])):
                raise FloatingPointError(f"a loss is not finite at step {measured['step']}")
            out.write("text", arm=arm, seed=seed, steps=steps, **_finite(measured))

        run(chosen, seed, own, held_out, steps, log=log)
        end = json_text.loads((own / "done.json").read_text())["end"]
        out.write("text end", arm=arm, seed=seed, steps=steps, **_finite(end))


def _scale(smoke: bool) -> TextScale:
    return SMOKE if smoke else TEXT


def _folder(out) -> pathlib.Path:
    return out.path.resolve().parent / "text"


def _held_out(out, scale: TextScale) -> HeldOut:
    return HeldOut.of(corpus.prepare(_folder(out) / "corpus", scale), scale)


def _finite(value: Any) -> Any:
    """The value with None in place of what is not finite, such as means over no tokens."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
