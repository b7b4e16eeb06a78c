"""Indexed attention in XLA, some queries at a time: memory of the logits is linear in T.

Each step scores its queries against all keys, takes the largest scores and attends with a mask, so
the work is that of full attention and of the indexer. Steps are computed again in the backward pass.
"""

import jax
import jax.numpy as jnp

from kernels_pallas import dispatch, segments
from kernels_pallas.indexed import choice

NEGATIVE = -1e30
QUERIES = 128  # of a step


def attention(
    q_BTHK,
    k_BSGK,
    v_BSGV,
    index_q_BTIJ,
    index_k_BSJ,
    index_w_BTI,
    segment_ids_BS,
    *,
    top_k,
    pool,
    pool_tail,
    scale,
    precision,
):
    """(out_BTHV, cross_entropy_BTH); the queries are the last T of the S tokens."""
    batch, time, heads, _ = q_BTHK.shape
    keys, kv_heads, value_size = v_BSGV.shape[1:]
    dtype = dispatch.accumulator_dtype(q_BTHK, k_BSGK, v_BSGV, index_q_BTIJ)
    document_BS = segments.document_number(segment_ids_BS)
    there_BS = segment_ids_BS != 0
    token_S = jnp.arange(keys, dtype=jnp.int32)
    pools = None
    if pool > 1:
        position_BS = token_S[None] - segments.first_token_index(segment_ids_BS)
        pools = choice.Pools(pool, pool_tail, position_BS)

    @jax.checkpoint
    def step(queries):
        q_BCHK, index_q_BCIJ, index_w_BCI, document_BC, token_BC = queries
        seen_BCS = document_BC[..., None] == document_BS[:, None]
        seen_BCS &= there_BS[:, None] & (token_S[None, None] <= token_BC[..., None])
        scores_BCS = choice.scores(index_q_BCIJ, index_k_BSJ, index_w_BCI)
        mask_BCS = choice.choose(jax.lax.stop_gradient(scores_BCS), seen_BCS, top_k, pools=pools)
        q_BCGRK = q_BCHK.reshape(*q_BCHK.shape[:2], kv_heads, heads // kv_heads, -1)
        logits_BGRCS = scale * jnp.einsum(
            "bcgrk,bsgk->bgrcs",
            q_BCGRK,
            k_BSGK,
            precision=precision,
            preferred_element_type=dtype,
        )
        weights_BGRCS = _softmax(logits_BGRCS, mask_BCS[:, None, None])
        out_BCGRV = jnp.einsum(
            "bgrcs,bsgv->bcgrv",
            weights_BGRCS.astype(v_BSGV.dtype),
            v_BSGV,
            precision=precision,
            preferred_element_type=dtype,
        )
        index_BCS = _log_softmax(scores_BCS, mask_BCS)
        cross_BCGR = -jnp.einsum("bgrcs,bcs->bcgr", jax.lax.stop_gradient(weights_BGRCS), index_BCS)
        return (
            out_BCGRV.reshape(*q_BCHK.shape[:3], value_size).astype(v_BSGV.dtype),
            cross_BCGR.reshape(*q_BCHK.shape[:3]),
        )

    count = -(-time // QUERIES)
    length = -(-time // count)

    def steps(x_BT):
        pad = ((0, 0), (0, count * length - time)) + ((0, 0),) * (x_BT.ndim - 2)
        x = jnp.pad(x_BT, pad).reshape(batch, count, length, *x_BT.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    def whole(x_NBC):
        x = jnp.moveaxis(x_NBC, 0, 1)
        return x.reshape(batch, count * length, *x.shape[3:])[:, :time]

    token_BT = jnp.broadcast_to(token_S[keys - time :], (batch, time))
    queries = q_BTHK, index_q_BTIJ, index_w_BTI, document_BS[:, keys - time :], token_BT
    if count == 1:
        return step(queries)
    return jax.tree.map(whole, jax.lax.map(step, jax.tree.map(steps, queries)))


def _softmax(logits, mask):
    logits = jnp.where(mask, logits, NEGATIVE)
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(logits - top), 0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total == 0, 1, total)


def _log_softmax(logits, mask):
    """0 where nothing is chosen, so that a product with a weight of 0 is 0."""
    logits = jnp.where(mask, logits, NEGATIVE)
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    total = jnp.sum(jnp.where(mask, jnp.exp(logits - top), 0), axis=-1, keepdims=True)
    return jnp.where(mask, logits - top - jnp.log(jnp.where(total == 0, 1, total)), 0)
