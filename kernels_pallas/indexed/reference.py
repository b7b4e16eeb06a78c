"""Dense attention with an explicit mask of tokens: the oracle, differentiated by autodiff."""

import jax
import jax.numpy as jnp

from kernels_pallas import dispatch, segments

NEGATIVE = -1e30


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
    time, keys = q_BTHK.shape[1], k_BSGK.shape[1]
    group = q_BTHK.shape[2] // k_BSGK.shape[2]
    dtype = dispatch.accumulator_dtype(q_BTHK, k_BSGK, v_BSGV, index_q_BTIJ)
    document_BS = segments.document_number(segment_ids_BS)
    seen_BTS = document_BS[:, keys - time :, None] == document_BS[:, None]
    seen_BTS &= (segment_ids_BS != 0)[:, None]
    token_S = jnp.arange(keys)
    seen_BTS &= (token_S[None] <= token_S[keys - time :, None])[None]

    highest = jax.lax.Precision.HIGHEST
    products_BTIS = jnp.einsum(
        "btij,bsj->btis", index_q_BTIJ.astype(dtype), index_k_BSJ.astype(dtype), precision=highest
    )
    weights_BTI1 = index_w_BTI.astype(dtype)[..., None]
    scores_BTS = jnp.sum(weights_BTI1 * jnp.maximum(products_BTIS, 0), axis=2)
    position_BS = token_S[None] - segments.first_token_index(segment_ids_BS)
    last_B1S = (position_BS % pool == pool - 1)[:, None]  # of a pool; each token without pools
    ranked_BTS = jnp.where(seen_BTS & last_B1S, jax.lax.stop_gradient(scores_BTS), -jnp.inf)
    other_BT1S, own_BTS1 = ranked_BTS[:, :, None], ranked_BTS[..., None]
    earlier_SS = token_S[None] < token_S[:, None]
    ahead_BTS = jnp.sum(
        (other_BT1S > own_BTS1) | ((other_BT1S == own_BTS1) & earlier_SS[None, None]), axis=-1
    )
    ends_BTS = seen_BTS & last_B1S & (ahead_BTS < top_k // pool)
    same_BSS = document_BS[:, None] == document_BS[..., None]
    same_BSS &= (position_BS // pool)[:, None] == (position_BS // pool)[..., None]
    mask_BTS = jnp.any(ends_BTS[..., None] & same_BSS[:, None], axis=2)
    if pool > 1 and pool_tail:
        own_BT = position_BS[:, keys - time :]
        whole_BT1 = ((own_BT + 1) // pool * pool)[..., None]
        mask_BTS |= position_BS[:, None] >= whole_BT1
    mask_BTS &= seen_BTS

    k_BSHK, v_BSHV = (jnp.repeat(x.astype(dtype), group, axis=2) for x in (k_BSGK, v_BSGV))
    logits_BHTS = scale * jnp.einsum(
        "bthk,bshk->bhts", q_BTHK.astype(dtype), k_BSHK, precision=precision
    )
    attention_BHTS = _softmax(logits_BHTS, mask_BTS[:, None])
    out_BTHV = jnp.einsum("bhts,bshv->bthv", attention_BHTS, v_BSHV, precision=precision)
    index_BTS = jnp.log(jnp.where(mask_BTS, _softmax(scores_BTS, mask_BTS), 1))
    target_BHTS = jax.lax.stop_gradient(attention_BHTS)
    cross_BTH = -jnp.einsum("bhts,bts->bth", target_BHTS, index_BTS, precision=highest)
    return out_BTHV.astype(v_BSGV.dtype), cross_BTH


def _softmax(logits, mask):
    logits = jnp.where(mask, logits, NEGATIVE)
    weights = jnp.where(mask, jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True)), 0)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    return weights / jnp.where(total == 0, 1, total)
