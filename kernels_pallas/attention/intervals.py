"""Shared by the kernels of all platforms: the interval of keys that each query sees, and the rows
that the backward passes read."""

import jax
import jax.numpy as jnp

from kernels_pallas import segments

NEGATIVE = -1e30
LOWEST_MAX = -1e20  # above NEGATIVE: a row without keys gets exp2(NEGATIVE - LOWEST_MAX) = 0
NO_KEYS = 2**30  # the start of a query that sees no keys


def starts(segment_ids_BS, slots: int, window):
    """int32 start_BT: query t sees the keys `start` to t. Keys are numbered as the queries are, the
    `slots` older ones negatively. NO_KEYS for padding."""
    start_BT = segments.first_token_index(segment_ids_BS)[:, slots:]
    if window is not None:
        query_1T = jnp.arange(start_BT.shape[1], dtype=jnp.int32)[None] + slots
        start_BT = jnp.maximum(start_BT, query_1T - (window - 1))
    return jnp.where(segment_ids_BS[:, slots:] == 0, NO_KEYS, start_BT - slots)


def merge(ours: tuple, theirs: tuple) -> tuple:
    """(out, lse) over the union of two disjoint sets of keys, from (out, lse) over each."""
    (out_a, lse_a), (out_b, lse_b) = ours, theirs
    m = jax.lax.stop_gradient(jnp.maximum(lse_a, lse_b))
    a, b = jnp.exp(lse_a - m), jnp.exp(lse_b - m)
    out = out_a * (a / (a + b))[..., None] + out_b * (b / (a + b))[..., None]
    return out, m + jnp.log(a + b)


def row_sums(dout_BTHV, dlse_BTH, out_BTHV):
    """delta_BTH: the row sum that softmax subtracts, minus the cotangent of lse. It is not finite where
    any of the three is not."""
    products_BTHV = dout_BTHV.astype(jnp.float32) * out_BTHV.astype(jnp.float32)
    return jnp.sum(products_BTHV, axis=-1) - dlse_BTH


def softmax_gradient(delta_BTH, lse_BTH, sinks_H, start_BT):
    """(lse_BTH, delta_BTH, dsinks_H), of d logits = exp(logits - lse) * (dp - delta)."""
    empty_BT1 = (start_BT == NO_KEYS)[..., None]
    lse_BTH = jnp.where(empty_BT1, -NEGATIVE, lse_BTH)  # p = exp(s - lse) = 0 in padding
    if sinks_H is None:
        return lse_BTH, delta_BTH, None
    p_sink_BTH = jnp.exp(sinks_H.astype(jnp.float32)[None, None] - lse_BTH)
    dsinks_H = -jnp.sum(p_sink_BTH * delta_BTH, axis=(0, 1)).astype(sinks_H.dtype)
    return lse_BTH, delta_BTH, dsinks_H
