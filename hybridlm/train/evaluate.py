"""Held-out loss, over all targets and by position in the document."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np


def evaluate(
    eval_step: Callable[[Any, Any], dict[str, jax.Array]], params: Any, batches: Iterable[Any]
) -> dict[str, Any]:
    """Averages `train.step.make_eval_step` over batches.

    Returns `loss` (nats a target), `bits_per_byte`, `targets`, and `by_position`: for positions
    0, 1, 2-3, 4-7, ... of the context the same figures with `first` and `last` position.
    """
    sums: dict[str, np.ndarray] = {}
    for batch in batches:
        for name, value in jax.device_get(eval_step(params, batch)).items():
            sums[name] = sums.get(name, 0) + np.asarray(value, np.float64)
    nll_T, targets_T, bytes_T = sums["nll_T"], sums["targets_T"], sums["bytes_T"]
    edges = [0, *(2**i for i in range(math.ceil(math.log2(len(nll_T))) + 1))]
    edges = sorted({min(edge, len(nll_T)) for edge in edges})
    by_position = []
    for first, end in zip(edges, edges[1:]):
        figures = _averages(nll_T[first:end], targets_T[first:end], bytes_T[first:end])
        if figures["targets"]:
            by_position.append({"first": first, "last": end - 1, **figures})
    return {**_averages(nll_T, targets_T, bytes_T), "by_position": by_position}


def _averages(nll: np.ndarray, targets: np.ndarray, size: np.ndarray) -> dict[str, float]:
    total = float(nll.sum())
    return {
        "loss": total / max(float(targets.sum()), 1.0),
        "bits_per_byte": total / max(float(size.sum()), 1.0) / math.log(2),
        "targets": int(targets.sum()),
    }
