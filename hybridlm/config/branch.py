"""The config of a branch: a run that goes on from a step of another and decays its learning rate."""

import pathlib
from collections.abc import Sequence
from typing import Any

from hybridlm.config.load import literal, override, read, read_json
from hybridlm.errors import RunError, UserError
from hybridlm.runs import checkpoint
from hybridlm.runs.workdir import CONFIG
from hybridlm.settings.plain import to_dict
from hybridlm.train.schedule import share_of_peak
from hybridlm.train.settings import Config


def branch(
    base: pathlib.Path,
    decay: int,
    step: int | None = None,
    workdir: pathlib.Path | None = None,
    overrides: Sequence[tuple[str, str]] = (),
) -> Config:
    """The config of a run's branch: that of the run, with schedule "wsd" and `init`.

    Args:
      base: the run's workdir.
      decay: optimizer steps of the branch, over which the learning rate decays.
      step: of the checkpoint where the branch begins; None is the newest.
      workdir: of the branch; if it has begun, it goes on with the config in there, and no longer
        needs its base.
      overrides: (dotted key, text of the value) pairs, as in `load`.

    Raises:
      UserError: if there is no such run or checkpoint, the step lies in its warm-up, or `workdir`
        holds a run that is no branch.
    """
    begun = workdir is not None and (workdir / CONFIG).is_file()
    file = (workdir if begun else base) / CONFIG
    if not file.is_file():
        raise RunError(f"{base} is no run: it has no {CONFIG}")
    config = to_dict(read_json(file))
    if begun and not (config["init"] and config["init"]["keep_step"]):
        raise RunError(f"--workdir {workdir} holds a run that is no branch: name another folder")
    if not begun:
        step = _decay(config, base, step)
    elif step is None and config["init"] is not None:
        step = config["init"]["step"]
    config["optimizer"] |= {"schedule": "wsd", "decay_steps": decay}
    config["train"]["steps"] = (step or 0) + decay
    source = {"path": str(base), "step": step, "optimizer": True, "keep_step": True}
    config["init"] = {**source, "fresh": ""}
    for key, text in overrides:
        override(config, key, literal(text))
    return read(config)


def _decay(config: dict[str, Any], base: pathlib.Path, step: int | None) -> int:
    """The step of the branch; sets the peak so that the rate goes on from the base's there."""
    step, optimizer = checkpoint.find(base, step), config["optimizer"]
    if step < optimizer["warmup_steps"]:
        raise UserError(
            f"--step {step} lies in the warm-up of {base}, of {optimizer['warmup_steps']}"
            " steps: begin the branch at its end or later"
        )
    share = share_of_peak(optimizer, config["train"]["steps"], step)
    if share == 0:
        raise UserError(
            f"the learning rate of {base} is 0 at step {step}, so it cannot decay: name an"
            " earlier --step"
        )
    if share != 1:
        optimizer["lr"] *= share
        optimizer["muon_lr"] = optimizer["muon_lr"] and optimizer["muon_lr"] * share
    return step
