"""Attention of one token over a cache whose slots are in any order."""

import jax
import jax.numpy as jnp

from kernels_pallas import dispatch

NEGATIVE = -1e30


def decode_attention(q_BHK, k_BSGK, v_BSGV, valid_BS, sinks_H, scale, soft_cap, bias_BSH=None):
    """out_BHV, dense over the S slots; the query sees those where `valid_BS`."""
    batch, heads, key_size = q_BHK.shape
    kv_heads, value_size = v_BSGV.shape[2:]
    dtype = dispatch.accumulator_dtype(q_BHK, k_BSGK, v_BSGV)
    q_BGRK = q_BHK.reshape(batch, kv_heads, heads // kv_heads, key_size)
    logits_BGRS = scale * jnp.einsum(
        "bgrk,bsgk->bgrs", q_BGRK, k_BSGK, preferred_element_type=dtype
    )
    if soft_cap is not None:
        logits_BGRS = soft_cap * jnp.tanh(logits_BGRS / soft_cap)
    if bias_BSH is not None:
        bias_BHS = jnp.swapaxes(bias_BSH, 1, 2).astype(dtype)
        logits_BGRS += bias_BHS.reshape(logits_BGRS.shape)
    mask_BGRS = valid_BS[:, None, None]
    logits_BGRS = jnp.where(mask_BGRS, logits_BGRS, NEGATIVE)
    max_BGR1 = jnp.max(logits_BGRS, axis=-1, keepdims=True)
    if sinks_H is not None:
        sink_1GR1 = sinks_H.astype(dtype).reshape(1, kv_heads, heads // kv_heads, 1)
        max_BGR1 = jnp.maximum(max_BGR1, sink_1GR1)
    max_BGR1 = jax.lax.stop_gradient(max_BGR1)  # shifts cancel in every output
    weights_BGRS = jnp.where(mask_BGRS, jnp.exp(logits_BGRS - max_BGR1), 0)
    sum_BGR1 = jnp.sum(weights_BGRS, axis=-1, keepdims=True)
    if sinks_H is not None:
        sum_BGR1 += jnp.exp(sink_1GR1 - max_BGR1)
    sum_BGR1 = jnp.where(jnp.any(mask_BGRS, axis=-1, keepdims=True), sum_BGR1, 1)
    # A slot of an earlier document may hold NaN, which a weight of 0 would not remove.
    v_BSGV = jnp.where(valid_BS[:, :, None, None], v_BSGV, 0)
    out_BGRV = jnp.einsum(
        "bgrs,bsgv->bgrv",
        (weights_BGRS / sum_BGR1).astype(v_BSGV.dtype),
        v_BSGV,
        preferred_element_type=dtype,
    )
    return out_BGRV.reshape(batch, heads, value_size).astype(v_BSGV.dtype)
