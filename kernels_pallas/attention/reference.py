"""Dense attention in plain jnp: the oracle, differentiated by autodiff."""

import jax
import jax.numpy as jnp

from kernels_pallas import dispatch, segments
from kernels_pallas.attention import forget

NEGATIVE = -1e30


def attention(
    q_BTHK,
    k_BSGK,
    v_BSGV,
    segment_ids_BS,
    sinks_H,
    log_forget_BSH=None,
    *,
    window,
    scale,
    soft_cap,
    precision,
):
    """(out_BTHV, lse_BTH); the queries are the last T of the S tokens."""
    batch, time, heads, key_size = q_BTHK.shape
    kv_heads, value_size = v_BSGV.shape[2:]
    dtype = dispatch.accumulator_dtype(q_BTHK, k_BSGK, v_BSGV)
    slots = k_BSGK.shape[1] - time

    document_BS = segments.document_number(segment_ids_BS)
    query_T1, key_1S = jnp.arange(time)[:, None] + slots, jnp.arange(slots + time)[None]
    reach_TS = key_1S <= query_T1
    if window is not None:
        reach_TS &= query_T1 - key_1S < window
    same_BTS = document_BS[:, slots:, None] == document_BS[:, None, :]
    mask_BTS = reach_TS[None] & same_BTS & (segment_ids_BS != 0)[:, None, :]
    mask_BGRTS = mask_BTS[:, None, None]

    q_BTGRK = q_BTHK.reshape(batch, time, kv_heads, heads // kv_heads, key_size)
    logits_BGRTS = scale * jnp.einsum(
        "btgrk,bsgk->bgrts", q_BTGRK.astype(dtype), k_BSGK.astype(dtype), precision=precision
    )
    if soft_cap is not None:
        logits_BGRTS = soft_cap * jnp.tanh(logits_BGRTS / soft_cap)
    if log_forget_BSH is not None:
        rows_BT = jnp.broadcast_to(query_T1[:, 0], (batch, time))
        sums_BHTS = forget.between_pairs(log_forget_BSH.astype(dtype), rows_BT)
        logits_BGRTS += sums_BHTS.reshape(logits_BGRTS.shape)
    logits_BGRTS = jnp.where(mask_BGRTS, logits_BGRTS, NEGATIVE)

    max_BGRT1 = jnp.max(logits_BGRTS, axis=-1, keepdims=True)
    if sinks_H is not None:
        sink_1GR11 = sinks_H.astype(dtype).reshape(1, kv_heads, heads // kv_heads, 1, 1)
        max_BGRT1 = jnp.maximum(max_BGRT1, sink_1GR11)
    max_BGRT1 = jax.lax.stop_gradient(max_BGRT1)  # shifts cancel in every output
    weights_BGRTS = jnp.where(mask_BGRTS, jnp.exp(logits_BGRTS - max_BGRT1), 0)
    sum_BGRT1 = jnp.sum(weights_BGRTS, axis=-1, keepdims=True)
    if sinks_H is not None:
        sum_BGRT1 += jnp.exp(sink_1GR11 - max_BGRT1)
    empty_BGRT1 = ~jnp.any(mask_BGRTS, axis=-1, keepdims=True)
    sum_BGRT1 = jnp.where(empty_BGRT1, 1, sum_BGRT1)
    out_BTGRV = jnp.einsum(
        "bgrts,bsgv->btgrv", weights_BGRTS / sum_BGRT1, v_BSGV.astype(dtype), precision=precision
    )
    lse_BGRT1 = jnp.where(empty_BGRT1, NEGATIVE, max_BGRT1 + jnp.log(sum_BGRT1))
    out_BTHV = out_BTGRV.reshape(batch, time, heads, value_size).astype(v_BSGV.dtype)
    lse_BTH = jnp.moveaxis(lse_BGRT1.reshape(batch, heads, time), 1, 2)
    return out_BTHV, lse_BTH
