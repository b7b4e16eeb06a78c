"""The learning-rate schedule without a device: whether a run may go on, where a branch begins.

The settings here are plain dicts, as in a run's `config.json`.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

#: The settings that may change when a run goes on, if its schedule allows it.
LENGTH = ("train.steps", "optimizer.decay_steps")


def why_not(
    path: pathlib.Path, old: dict[str, Any], new: dict[str, Any], saved: Sequence[int]
) -> str | None:
    """Why the run in `path` may not go on with other `LENGTH`; None if it may.

    It may if the updates up to its newest checkpoint are those of a run that had the new settings
    from the start: a constant rate, and "wsd" before its decay, do not depend on the last step.

    Args:
      old, new: settings of the whole run; they differ in `LENGTH` only.
      saved: steps of the run's checkpoints, oldest first.
    """
    newest = saved[-1] if saved else 0
    if not newest:  # nothing has been trained
        return None
    steps = new["train"]["steps"]
    if steps < newest:
        return (
            f"{path} holds a run that has trained {newest} steps, and train.steps is {steps}: use"
            f" another --workdir, or at least {newest} steps"
        )
    stable = min(_stable_steps(old), _stable_steps(new))
    if newest <= stable:
        return None
    schedule, at = old["optimizer"]["schedule"], newest
    reason = f"the schedule {schedule!r} has been on its way to step {old['train']['steps']}"
    if schedule == "wsd":
        reason = f"the learning rate has decayed since step {_stable_steps(old)}"
        at = max((step for step in saved if step <= stable), default=newest)
    more = max(steps - at, 1)
    return (
        f"{path} cannot go on with train.steps {steps}, because {reason}: begin a branch whose rate"
        f" decays over more steps, e.g. hybridlm branch {path} --step {at} --decay {more} --workdir"
        f" {path}-decay"
    )


def share_of_peak(optimizer: dict[str, Any], steps: int, step: int) -> float:
    """The learning rate after `step` steps over its peak, after the warm-up; 1.0 before decay."""
    schedule, warmup = optimizer["schedule"], optimizer["warmup_steps"]
    decay = optimizer["decay_steps"] if schedule == "wsd" else steps - warmup
    done = min(max((step - (steps - decay)) / decay, 0.0), 1.0) if decay else 0.0
    floor = optimizer["final_lr_fraction"]
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))
    return 1 - (1 - floor) * done


def _stable_steps(settings: dict[str, Any]) -> float:
    """The number of updates whose rate does not depend on the run's last step."""
    optimizer, steps = settings["optimizer"], settings["train"]["steps"]
    if optimizer["schedule"] == "wsd":
        return steps - optimizer["decay_steps"]
    return math.inf if optimizer["schedule"] == "constant" else 0
