"""Attention to the keys that an indexer chooses (DeepSeek-V3.2, arXiv 2512.02556 sec. 2.1).

A small indexer with heads of its own scores every earlier token of the document; the attention heads
all attend to the tokens with the highest scores. The choice is not differentiated. So that the indexer
can learn, its cross-entropy with what the heads attend to is returned as well.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kernels_pallas import dispatch, nonfinite, segments
from kernels_pallas.indexed import chunked, reference
from kernels_pallas.indexed.choice import Pools as Pools
from kernels_pallas.indexed.choice import chosen_keys as chosen_keys

SUPPORT = dispatch.XLA_ONLY
_FORMS = {"reference": reference.attention, "chunked": chunked.attention}


class IndexedState(NamedTuple):
    """The S tokens directly before the first one, oldest first; a slot with segment id 0 is empty."""

    k_BSGK: Float[Array, "B S G K"]
    v_BSGV: Float[Array, "B S G V"]
    index_k_BSJ: Float[Array, "B S J"]
    segment_ids_BS: Int[Array, "B S"]


def indexed_attention(
    q_BTHK: Float[Array, "B T H K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTGV: Float[Array, "B T G V"],
    index_q_BTIJ: Float[Array, "B T I J"],
    index_k_BTJ: Float[Array, "B T J"],
    index_w_BTI: Float[Array, "B T I"],
    *,
    top_k: int,
    pool: int = 1,
    pool_tail: bool = True,
    segment_ids: Int[Array, "B T"] | None = None,
    scale: float | None = None,
    initial_state: IndexedState | None = None,
    impl: str = "auto",
    precision=None,
) -> tuple[Array, Array]:
    """softmax(scale * q k^T) v over the `top_k` tokens that the indexer scores highest.

    The score of the earlier token s (or the token itself) for token t of the same document is
    sum over i of w_ti relu(q^I_ti . k^I_s), in at least float32; of equal scores the earlier token is
    taken. A top_k that covers the document is full attention. Padding (segment id 0) gets out = 0
    and a cross-entropy of 0, and no query sees it.

    Arguments:
      q_BTHK, k_BTGK, v_BTGV: any floating dtype; H is a multiple of G, head h reads h // (H // G).
      index_q_BTIJ, index_k_BTJ, index_w_BTI: the indexer's queries, keys and weights of its heads.
      top_k: tokens that a query sees at most.
      pool: more than 1 lets a key stand for as many tokens: the first of the document, the next, and
        so on. The key at a pool's last token is the pool's, and the query sees all tokens of the
        `top_k // pool` pools of the highest scores, of those whose last token it sees. The
        cross-entropy has no meaning with pools: ignore it.
      pool_tail: with pools, a query sees the tokens after its document's last whole pool, too.
      segment_ids: int (B, T), 0 = padding, a change = boundary; None = one document (id 1).
      scale: of the logits, K ** -0.5 if None.
      initial_state: tokens directly before the first one, any number of slots; with pools it begins
        at the start of a document.
      impl: "auto", "reference" (dense), or "chunked", which holds the logits of some queries at a
        time; both multiply every query with all S keys.
      precision: of the matrix products; that of scores is the highest.

    Returns (out_BTHV, cross_entropy_BTH). out has v's dtype. The cross-entropy, float32 (float64 where
    an input is), is that of softmax(scores) with a head's attention, over the chosen tokens; its
    gradient reaches the indexer's three arrays alone, and they have no other.
    Raises ValueError for shapes that do not agree, H % G != 0, top_k < 1.
    """
    index = index_q_BTIJ, index_k_BTJ, index_w_BTI
    _check(q_BTHK, k_BTGK, v_BTGV, index, segment_ids, top_k, initial_state)
    if not isinstance(pool, int) or pool < 1 or top_k % pool:
        raise ValueError(f"indexed_attention: pool must divide top_k {top_k}, got {pool}.")
    scale = dispatch.number("indexed_attention", "scale", scale)
    batch, time, heads, key_size = q_BTHK.shape
    case = dict(
        dtype=str(q_BTHK.dtype),
        key_size=key_size,
        value_size=v_BTGV.shape[-1],
        heads_per_kv=heads // k_BTGK.shape[2],
        top_k=top_k,
        state=initial_state is not None,
    )
    form = _FORMS[dispatch.resolve("indexed_attention", impl, case, SUPPORT)]
    ids_BS = segments.or_one_document(segment_ids, batch, time)
    k_BSGK, v_BSGV, index_k_BSJ = k_BTGK, v_BTGV, index_k_BTJ
    if initial_state is not None:
        old = initial_state
        k_BSGK = jnp.concatenate([old.k_BSGK.astype(k_BTGK.dtype), k_BTGK], axis=1)
        v_BSGV = jnp.concatenate([old.v_BSGV.astype(v_BTGV.dtype), v_BTGV], axis=1)
        index_k_BSJ = jnp.concatenate([old.index_k_BSJ.astype(index_k_BTJ.dtype), index_k_BTJ], 1)
        ids_BS = jnp.concatenate([old.segment_ids_BS.astype(jnp.int32), ids_BS], axis=1)
    # What is not finite in the indexer spoils as it does in the queries and keys.
    index_q_BTIJ, bad_q_BT = _finite(index_q_BTIJ)
    index_w_BTI, bad_w_BT = _finite(index_w_BTI)
    index_k_BSJ, bad_k_BS = _finite(index_k_BSJ)
    q_BTHK = jnp.where((bad_q_BT | bad_w_BT)[:, :, None, None], jnp.nan, q_BTHK)
    k_BSGK = jnp.where(bad_k_BS[:, :, None, None], jnp.nan, k_BSGK)
    contained = nonfinite.contain_attention(q_BTHK, k_BSGK, v_BSGV, ids_BS)
    out_BTHV, cross_BTH = form(
        *contained.inputs,
        index_q_BTIJ,
        index_k_BSJ,
        index_w_BTI,
        ids_BS,
        top_k=top_k,
        pool=pool,
        pool_tail=pool_tail,
        scale=key_size**-0.5 if scale is None else scale,
        precision=precision,
    )
    return contained.mark(out_BTHV), contained.mark(cross_BTH)


def _finite(x: Array) -> tuple[Array, Array]:
    """x with 0 for what is not finite, and the tokens that had it."""
    bad = ~jnp.isfinite(x)
    return jnp.where(bad, 0, x), jnp.any(bad, axis=tuple(range(2, x.ndim)))


def _check(q_BTHK, k_BTGK, v_BTGV, index, segment_ids, top_k, initial_state) -> None:
    op = "indexed_attention"
    if q_BTHK.ndim != 4 or q_BTHK.shape[1] < 1:
        raise ValueError(f"{op}: q must have shape (B, T, H, K) with T >= 1, got {q_BTHK.shape}.")
    batch, time, heads, key_size = q_BTHK.shape
    if k_BTGK.ndim != 4 or v_BTGV.ndim != 4 or k_BTGK.shape[:3] != v_BTGV.shape[:3]:
        raise ValueError(
            f"{op}: k and v must have shapes (B, T, G, K) and (B, T, G, V), got {k_BTGK.shape} and"
            f" {v_BTGV.shape}."
        )
    kv_heads = k_BTGK.shape[2]
    dispatch.check_shape(op, "k", k_BTGK, (batch, time, kv_heads, key_size), "B T G K")
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(
            f"{op}: query heads must be a multiple of key/value heads, got {heads} and {kv_heads}."
        )
    index_q_BTIJ, index_k_BTJ, index_w_BTI = index
    if index_q_BTIJ.ndim != 4:
        raise ValueError(f"{op}: index_q must have shape (B, T, I, J), got {index_q_BTIJ.shape}.")
    index_heads, index_size = index_q_BTIJ.shape[2:]
    shape = (batch, time, index_heads, index_size)
    dispatch.check_shape(op, "index_q", index_q_BTIJ, shape, "B T I J")
    dispatch.check_shape(op, "index_k", index_k_BTJ, (batch, time, index_size), "B T J")
    dispatch.check_shape(op, "index_w", index_w_BTI, (batch, time, index_heads), "B T I")
    arrays = dict(zip(("index_q", "index_k", "index_w"), index))
    dispatch.check_arrays(op, q=q_BTHK, k=k_BTGK, v=v_BTGV, **arrays)
    if not isinstance(top_k, int) or top_k < 1:
        raise ValueError(f"{op}: top_k must be an int >= 1, got {top_k}.")
    segments.check(op, segment_ids, batch, time)
    sizes = dict(B=batch, G=kv_heads, K=key_size, V=v_BTGV.shape[3], J=index_size)
    dispatch.check_state(op, initial_state, IndexedState, **sizes)
