"""Block-sparse attention of one token over a cache: reads only mean keys and the selected blocks."""

import jax
import jax.numpy as jnp

from kernels_pallas import dispatch
from kernels_pallas.block_sparse import blocks as blocks_

NEGATIVE = -1e30


def decode(q_BHK, k_BSGK, v_BSGV, means_BNGK, first_B, position_B, block, top_k, scale):
    """out_BHV; token p of a row's document is in slot (first + p) % S."""
    batch, heads, _ = q_BHK.shape
    slots, kv_heads, value_size = v_BSGV.shape[1:]
    dtype = dispatch.accumulator_dtype(q_BHK, k_BSGK, v_BSGV)
    own_B = jnp.maximum(position_B, 0) // block
    others = min(top_k - 1, means_BNGK.shape[1])
    chosen_BHJ = jnp.broadcast_to(own_B[:, None, None], (batch, heads, 1))
    open_BHJ = jnp.broadcast_to((position_B >= 0)[:, None, None], (batch, heads, 1))
    if others:
        first_B1, last_B1 = jnp.zeros_like(own_B)[:, None], own_B[:, None]
        q_B1HK = jax.lax.stop_gradient(q_BHK)[:, None]
        means_BNGK = jax.lax.stop_gradient(means_BNGK)
        s_BHN = blocks_.scores(q_B1HK, means_BNGK, first_B1, last_B1)[:, 0]
        _, choice_BHJ = jax.lax.top_k(s_BHN, others)  # of equals the lower index
        left_BJ = (jnp.arange(others)[None] < last_B1) & (position_B >= 0)[:, None]
        left_BHJ = jnp.broadcast_to(left_BJ[:, None], choice_BHJ.shape)
        chosen_BHJ = jnp.concatenate([chosen_BHJ, choice_BHJ.astype(jnp.int32)], axis=-1)
        open_BHJ = jnp.concatenate([open_BHJ, left_BHJ], axis=-1)

    token_BHJC = (
        chosen_BHJ[..., None] * block + jnp.arange(block, dtype=jnp.int32)[None, None, None]
    )
    mask_BHJC = open_BHJ[..., None] & (token_BHJC <= position_B[:, None, None, None])
    slot_BGM = ((first_B[:, None, None, None] + token_BHJC) % slots).reshape(batch, kv_heads, -1)
    group = heads // kv_heads
    k_BGRSK = _take(k_BSGK, slot_BGM).reshape(batch, kv_heads, group, -1, q_BHK.shape[-1])
    v_BGRSV = _take(v_BSGV, slot_BGM).reshape(batch, kv_heads, group, -1, value_size)
    mask_BGRS = mask_BHJC.reshape(k_BGRSK.shape[:4])

    q_BGRK = q_BHK.reshape(batch, kv_heads, group, -1)
    logits_BGRS = scale * jnp.einsum(
        "bgrk,bgrsk->bgrs", q_BGRK, k_BGRSK, preferred_element_type=dtype
    )
    logits_BGRS = jnp.where(mask_BGRS, logits_BGRS, NEGATIVE)
    max_BGR1 = jax.lax.stop_gradient(jnp.max(logits_BGRS, axis=-1, keepdims=True))
    weights_BGRS = jnp.where(mask_BGRS, jnp.exp(logits_BGRS - max_BGR1), 0)
    sum_BGR1 = jnp.sum(weights_BGRS, axis=-1, keepdims=True)
    weights_BGRS /= jnp.where(jnp.any(mask_BGRS, axis=-1, keepdims=True), sum_BGR1, 1)
    # A slot of an earlier document may hold NaN, which a weight of 0 would not remove.
    v_BGRSV = jnp.where(mask_BGRS[..., None], v_BGRSV, 0)
    out_BGRV = jnp.einsum(
        "bgrs,bgrsv->bgrv", weights_BGRS.astype(v_BSGV.dtype), v_BGRSV, preferred_element_type=dtype
    )
    return out_BGRV.reshape(batch, heads, value_size).astype(v_BSGV.dtype)


def update_means(means_BNGK, k_BSGK, first_B, known_B, length_B, time, block):
    """The means after at most `time` more tokens; those of complete blocks do not change."""
    slots, places = k_BSGK.shape[1], means_BNGK.shape[1]
    whole_B1 = known_B[:, None] // block
    # Blocks that `time` tokens can touch, from the first incomplete one.
    touched = min(places, (time + block - 2) // block + 1)
    number_BX = whole_B1 + jnp.arange(touched, dtype=jnp.int32)[None]
    token_BXC = number_BX[..., None] * block + jnp.arange(block, dtype=jnp.int32)[None, None]
    there_BXC = token_BXC < length_B[:, None, None]
    slot_BXC = (first_B[:, None, None] + token_BXC) % slots
    k_BXCGK = jax.vmap(lambda k, slot: k[slot])(k_BSGK, slot_BXC)
    k_BXCGK = jnp.where(there_BXC[..., None, None], k_BXCGK, 0)
    count_BX = jnp.sum(there_BXC, axis=-1, dtype=jnp.int32)
    new_BXGK = blocks_.mean(k_BXCGK, count_BX).astype(means_BNGK.dtype)
    keep_BN = jnp.arange(places, dtype=jnp.int32)[None] < whole_B1
    means_BNGK = jnp.where(keep_BN[..., None, None], means_BNGK, 0)
    return jax.vmap(lambda means, n, new: means.at[n].set(new, mode="drop"))(
        means_BNGK, number_BX, new_BXGK
    )


def _take(x_BSGK, slot_BGM):
    """(B, G, M, K)."""
    per_head = jax.vmap(lambda x_SK, slot_M: x_SK[slot_M], in_axes=(1, 0))
    return jax.vmap(per_head)(x_BSGK, slot_BGM)
