"""Dense attention with an explicit mask of tokens: the oracle, differentiated by autodiff."""

import jax
import jax.numpy as jnp

from kernels_pallas import dispatch, segments
from kernels_pallas.block_sparse import blocks as blocks_

NEGATIVE = -1e30


def attention(
    q_BTHK, k_BSGK, v_BSGV, segment_ids_BS, positions_BS, *, block, top_k, scale, precision
):
    """(out_BTHV, lse_BTH); the queries are the last T of the S tokens."""
    batch, time, heads, key_size = q_BTHK.shape
    kv_heads, value_size = v_BSGV.shape[2:]
    dtype = dispatch.accumulator_dtype(q_BTHK, k_BSGK, v_BSGV)
    mask_BTHS = _mask(q_BTHK, k_BSGK, segment_ids_BS, positions_BS, block, top_k)
    mask_BGRTS = jnp.moveaxis(mask_BTHS, 1, 2).reshape(batch, kv_heads, heads // kv_heads, time, -1)
    q_BTGRK = q_BTHK.reshape(batch, time, kv_heads, heads // kv_heads, key_size)
    logits_BGRTS = scale * jnp.einsum(
        "btgrk,bsgk->bgrts", q_BTGRK.astype(dtype), k_BSGK.astype(dtype), precision=precision
    )
    logits_BGRTS = jnp.where(mask_BGRTS, logits_BGRTS, NEGATIVE)
    max_BGRT1 = jax.lax.stop_gradient(jnp.max(logits_BGRTS, axis=-1, keepdims=True))
    weights_BGRTS = jnp.where(mask_BGRTS, jnp.exp(logits_BGRTS - max_BGRT1), 0)
    sum_BGRT1 = jnp.sum(weights_BGRTS, axis=-1, keepdims=True)
    empty_BGRT1 = ~jnp.any(mask_BGRTS, axis=-1, keepdims=True)
    sum_BGRT1 = jnp.where(empty_BGRT1, 1, sum_BGRT1)
    out_BTGRV = jnp.einsum(
        "bgrts,bsgv->btgrv", weights_BGRTS / sum_BGRT1, v_BSGV.astype(dtype), precision=precision
    )
    lse_BGRT1 = jnp.where(empty_BGRT1, NEGATIVE, max_BGRT1 + jnp.log(sum_BGRT1))
    out_BTHV = out_BTGRV.reshape(batch, time, heads, value_size).astype(v_BSGV.dtype)
    return out_BTHV, jnp.moveaxis(lse_BGRT1.reshape(batch, heads, time), 1, 2)


def _mask(q_BTHK, k_BSGK, segment_ids_BS, positions_BS, block, top_k):
    """(B, T, H, S): what each query head sees."""
    time, keys = q_BTHK.shape[1], k_BSGK.shape[1]
    slots = keys - time
    document_BS = segments.document_number(segment_ids_BS)
    same_BTS = document_BS[:, slots:, None] == document_BS[:, None]
    same_BTS &= (segment_ids_BS != 0)[:, None]
    past_TS = jnp.arange(keys)[None] <= jnp.arange(time)[:, None] + slots
    own_BTS = positions_BS[:, slots:, None] // block == positions_BS[:, None] // block
    same_BTS &= past_TS[None]

    blocks = blocks_.layout(segment_ids_BS, positions_BS, time, block)
    places = blocks.start_BN.shape[1]
    if places == 0:
        seen_BTS = same_BTS & own_BTS
        return jnp.broadcast_to(seen_BTS[:, :, None], (*q_BTHK.shape[:3], keys))
    means_BNGK = blocks_.means(blocks_.gather(k_BSGK, blocks, block), blocks)
    s_BTHN = blocks_.scores(q_BTHK, means_BNGK, blocks.first_BT, blocks.last_BT)
    s_BTHN1, s_BTH1N = s_BTHN[..., None], s_BTHN[..., None, :]
    n = jnp.arange(places)
    before_NN = (n[None] < n[:, None])[None, None, None]
    ahead_BTHN = jnp.sum((s_BTH1N > s_BTHN1) | ((s_BTH1N == s_BTHN1) & before_NN), axis=-1)
    chosen_BTHN = (ahead_BTHN < top_k - 1) & (s_BTHN > -jnp.inf)
    number_BS = jnp.minimum(blocks.number_BS, places - 1)
    chosen_BTHS = jax.vmap(lambda chosen, number: chosen[..., number])(chosen_BTHN, number_BS)
    chosen_BTHS &= (blocks.number_BS < places)[:, None, None]
    return same_BTS[:, :, None] & (own_BTS[:, :, None] | chosen_BTHS)
