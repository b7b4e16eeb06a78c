"""How far back layers look, and how long their states last: figures from activations."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from hybridlm.models.mixers.states import NAMES


def states(name: str) -> bool:
    """Whether an activation is a recurrent state."""
    return name.rpartition(".")[2] in NAMES


def decays(name: str) -> bool:
    """Whether an activation is needed for half-lives."""
    return name.endswith((".hook_log_decay", ".hook_log_forget", ".hook_dt", ".hook_a"))


def receptive_field(matrix: np.ndarray, share: float) -> np.ndarray:
    """(..., Q) float: the newest tokens that hold `share` of |matrix| (..., Q, T), by query.

    Row q is the query of token q. NaN for a row of zeros, or one that is not finite.
    """
    weights = np.abs(matrix.astype(np.float64))
    queries, time = weights.shape[-2:]
    back = np.arange(queries)[:, None] - np.arange(time)[None]  # tokens back from the query
    order = np.argsort(np.where(back >= 0, back, time + np.arange(time)[None]), axis=1)
    nearest = np.take_along_axis(weights, np.broadcast_to(order, weights.shape), axis=-1)
    total = np.cumsum(nearest, axis=-1)
    whole = total[..., -1:]
    count = 1.0 + np.sum(total < share * whole * (1 - 1e-12), axis=-1)
    return np.where(np.isfinite(whole[..., 0]) & (whole[..., 0] > 0), count, np.nan)


def half_lives(kept: Mapping[str, Any], ids_BT: np.ndarray) -> dict[str, np.ndarray]:
    """Tokens in which decay halves a state, by the mixer's name; see `Inspected.half_lives`."""
    real_BT, found = ids_BT != 0, {}

    def mean(x: Any) -> np.ndarray:
        x = np.asarray(x, np.float64)
        return x[real_BT].mean(axis=0) if x.shape[:2] == real_BT.shape else x

    for name, x in kept.items():
        mixer, _, last = name.rpartition(".")
        if last in ("hook_log_decay", "hook_log_forget"):
            rate = -mean(x)
        elif last == "hook_a":  # Mamba's decays are exp(dt a), and dt varies by token
            rate = -mean(kept[f"{mixer}.hook_dt"])[:, None] * np.asarray(x, np.float64)
        else:
            continue
        with np.errstate(divide="ignore"):
            found[mixer] = np.log(2) / rate
    return found


def norms(state: np.ndarray) -> np.ndarray:
    """Frobenius norms (B, P, H) of states (B, P, H, ...); (B, P) of channels (B, P, D)."""
    axes = tuple(range(3, state.ndim)) or (2,)
    return np.sqrt(np.sum(np.square(state.astype(np.float64)), axis=axes))
