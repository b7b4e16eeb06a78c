"""Averages of a run's checkpoints (Izmailov et al. 2018, arXiv 1803.05407)."""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from hybridlm.errors import RunError
from hybridlm.progress import doing
from hybridlm.runs import checkpoint
from hybridlm.runs.opened import OpenedModel, open_model
from hybridlm.runs.workdir import CONFIG
from hybridlm.storage import open_path


def average_checkpoints(
    path: pathlib.Path | str, *, last: int | None = None, steps: Sequence[int] = ()
) -> OpenedModel:
    """The model of a run with the uniform average of its parameters at several steps.

    Sums are float64, the average is rounded to float32 once. One checkpoint at a time is in memory.

    Args:
      path: a workdir of `hybridlm train`.
      last: average this many of the newest checkpoints.
      steps: or average the checkpoints of these steps.

    Raises:
      RunError: if there is no such run, it has fewer checkpoints, or not one of a step, or the
        parameters in a checkpoint are not the model's.
    """
    path = open_path(path)
    if not (path / CONFIG).is_file():
        raise RunError(f"{path} is no run: it has no {CONFIG}")
    found = checkpoint.steps(path)
    chosen = sorted(set(steps)) if last is None else found[-last:]
    if last is not None and len(chosen) < last:
        listed = f" ({', '.join(map(str, found))})" if found else ""
        raise RunError(
            f"{path} holds {len(found)} checkpoints{listed}, fewer than the {last} to average:"
            " train.keep_checkpoints and train.keep_every keep more"
        )
    opened = open_model(path, chosen[-1])
    with doing(f"averaging {len(chosen)} checkpoints"):
        total = jax.tree.map(lambda x: x.astype(np.float64), opened.params)
        for step in chosen[:-1]:
            jax.tree.map(lambda t, x: np.add(t, x, out=t), total, opened.params_at(step))
        params = jax.tree.map(lambda t: (t / len(chosen)).astype(np.float32), total)
    return dataclasses.replace(opened, params=params, step=None, averaged=tuple(chosen))
