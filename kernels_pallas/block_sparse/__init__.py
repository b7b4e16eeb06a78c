"""Block-sparse attention by the mean keys of blocks: MoBA (arXiv 2502.13189, sec. 2.2).

Each query head attends to its own block causally and to the earlier blocks of its document with the
highest scores, the dot products of the query with their mean keys. The selection has no parameters
and is not differentiated. Returns the output and its log-sum-exp, both differentiable.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kernels_pallas import dispatch, nonfinite, segments
from kernels_pallas.block_sparse import chunked, reference
from kernels_pallas.block_sparse.decode import decode as _decode
from kernels_pallas.block_sparse.decode import update_means as _update_means
from kernels_pallas.block_sparse.rows import visible_keys as visible_keys

SUPPORT = dispatch.XLA_ONLY
_FORMS = {"reference": reference.attention, "chunked": chunked.attention}


class BlockSparseState(NamedTuple):
    """The S tokens directly before the first one, oldest first.

    A slot with segment id 0 is empty (or padding). Positions count from 0 at a document's start and
    determine a key's block. The oldest document may be incomplete, without its first tokens; the mean
    of its first block is then that of the keys in the state.
    """

    k_BSGK: Float[Array, "B S G K"]
    v_BSGV: Float[Array, "B S G V"]
    segment_ids_BS: Int[Array, "B S"]
    positions_BS: Int[Array, "B S"]


def empty_state(
    batch: int, slots: int, kv_heads: int, key_size: int, value_size: int, dtype=jnp.float32
) -> BlockSparseState:
    """A state of `slots` empty slots."""
    return BlockSparseState(
        jnp.zeros((batch, slots, kv_heads, key_size), dtype),
        jnp.zeros((batch, slots, kv_heads, value_size), dtype),
        jnp.zeros((batch, slots), jnp.int32),
        jnp.zeros((batch, slots), jnp.int32),
    )


def block_sparse_attention(
    q_BTHK: Float[Array, "B T H K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTGV: Float[Array, "B T G V"],
    *,
    block: int,
    top_k: int,
    segment_ids: Int[Array, "B T"] | None = None,
    scale: float | None = None,
    initial_state: BlockSparseState | None = None,
    return_state: bool = False,
    impl: str = "auto",
    precision=None,
) -> tuple:
    """softmax(scale * q k^T) v over a query's own block up to itself and top_k - 1 earlier blocks.

    Blocks of `block` tokens are counted from the document's start. Query head h reads key/value
    head h // (H // G) and selects, among the earlier blocks of its document, those with the largest
    q . mean(k of the block); of equal ones the earlier. top_k = 1 is attention within blocks, and a
    top_k that covers all blocks is full attention. Padding (segment id 0) gets out = 0 and
    lse = -1e30, passes no gradient, and no query sees it.

    Arguments:
      q_BTHK, k_BTGK, v_BTGV: any floating dtype; H is a multiple of G.
      block: tokens of a block.
      top_k: blocks a query sees, its own included, as in the paper.
      segment_ids: int (B, T), 0 = padding, a change = boundary; None = one document (id 1).
      scale: of the logits, K ** -0.5 if None.
      initial_state: tokens directly before the first one, any number of slots.
      return_state: also return the state after the last token, with all slots.
      impl: "auto", "reference" (dense), "chunked" (work T * top_k * block plus T * S / block scores;
        memory linear in T) or "pallas".
      precision: of the matrix products, as in `jax.lax.dot_general`; that of scores is the highest.

    Returns (out_BTHV, lse_BTH), or (out_BTHV, lse_BTH, BlockSparseState). out has v's dtype; lse
    is float32 (float64 where an input is float64).
    Raises ValueError for shapes that do not agree, H % G != 0, block < 1, top_k < 1, a scale that
    is no Python number, non-integer segment ids, unknown impl.
    """
    _check(q_BTHK, k_BTGK, v_BTGV, segment_ids, block, top_k, initial_state)
    scale = dispatch.number("block_sparse_attention", "scale", scale)
    batch, time, heads, key_size = q_BTHK.shape
    kv_heads, value_size = v_BTGV.shape[2:]
    case = dict(
        dtype=str(q_BTHK.dtype),
        key_size=key_size,
        value_size=value_size,
        heads_per_kv=heads // kv_heads,
        block=block,
        top_k=top_k,
        state=initial_state is not None,
    )
    form = _FORMS[dispatch.resolve("block_sparse_attention", impl, case, SUPPORT)]

    old = initial_state
    if old is None:
        old = empty_state(batch, 0, kv_heads, key_size, value_size)
    # The barrier keeps XLA from evaluating the layout of one document at compile time, slowly.
    ids_BT = jax.lax.optimization_barrier(segments.or_one_document(segment_ids, batch, time))
    ids_BS = jnp.concatenate([old.segment_ids_BS.astype(jnp.int32), ids_BT], axis=1)
    state = BlockSparseState(
        jnp.concatenate([old.k_BSGK.astype(k_BTGK.dtype), k_BTGK], axis=1),
        jnp.concatenate([old.v_BSGV.astype(v_BTGV.dtype), v_BTGV], axis=1),
        ids_BS,
        _positions(ids_BS, old.positions_BS),
    )
    contained = nonfinite.contain_attention(q_BTHK, state.k_BSGK, state.v_BSGV, ids_BS)
    out_BTHV, lse_BTH = form(
        *contained.inputs,
        ids_BS,
        state.positions_BS,
        block=block,
        top_k=top_k,
        scale=key_size**-0.5 if scale is None else scale,
        precision=precision,
    )
    out_BTHV, lse_BTH = contained.mark(out_BTHV), contained.mark(lse_BTH, nonfinite.NO_KEYS)
    return (out_BTHV, lse_BTH, state) if return_state else (out_BTHV, lse_BTH)


def decode_block_sparse_attention(
    q_BHK: Float[Array, "B H K"],
    k_BSGK: Float[Array, "B S G K"],
    v_BSGV: Float[Array, "B S G V"],
    means_BNGK: Float[Array, "B N G K"],
    first_B: Int[Array, "B"],
    position_B: Int[Array, "B"],
    *,
    block: int,
    top_k: int,
    scale: float | None = None,
) -> Float[Array, "B H V"]:
    """Attention of one query per row over a ring of S slots; reads N mean keys and top_k * block tokens.

    Arguments:
      q_BHK, k_BSGK, v_BSGV: any floating dtype; H is a multiple of G. The query's own key and
        value are in the ring.
      means_BNGK: mean keys of the document's blocks, from `update_means`.
      first_B: int32, index of the document's first token; token p of it lies in slot
        (first + p) % S.
      position_B: int32, the query's position in its document; -1 for padding, which sees no keys.
      block, top_k, scale: as in `block_sparse_attention`.

    Returns out_BHV in v's dtype.
    Raises ValueError for shapes that do not agree, block < 1, top_k < 1.
    """
    op = "decode_block_sparse_attention"
    if q_BHK.ndim != 3:
        raise ValueError(f"{op}: q must have shape (B, H, K), got {q_BHK.shape}.")
    batch, slots = q_BHK.shape[0], k_BSGK.shape[1] if k_BSGK.ndim > 1 else 0
    _check_heads(op, q_BHK[:, None], k_BSGK, v_BSGV, batch, slots)
    for name, array in (("first_B", first_B), ("position_B", position_B)):
        dispatch.check_shape(op, name, array, (batch,), "B")
        dispatch.check_dtype(op, name, array, "integers")
    _check_blocks(op, block, top_k)
    scale = dispatch.number(op, "scale", scale)
    # A query's own block needs no mean.
    places = max((slots - 1) // block if top_k > 1 else 0, *means_BNGK.shape[1:2])
    shape = (batch, places, *k_BSGK.shape[2:])
    dispatch.check_shape(op, "means_BNGK", means_BNGK, shape, "B N G K")
    scale = q_BHK.shape[-1] ** -0.5 if scale is None else scale
    return _decode(q_BHK, k_BSGK, v_BSGV, means_BNGK, first_B, position_B, block, top_k, scale)


def update_means(
    means_BNGK: Float[Array, "B N G K"],
    k_BSGK: Float[Array, "B S G K"],
    first_B: Int[Array, "B"],
    known_B: Int[Array, "B"],
    length_B: Int[Array, "B"],
    *,
    time: int,
    block: int,
) -> Float[Array, "B N G K"]:
    """Mean keys of the blocks of each row's newest document, block n at index n.

    Arguments:
      means_BNGK: float32 or float64, the previous means; N is the capacity of the ring in blocks.
      k_BSGK: the ring, with the new keys.
      first_B: int32, index of the document's first token.
      known_B: int32, the document's tokens in the previous means; 0 for a document that has begun
        since.
      length_B: int32, the document's tokens now.
      time: upper bound on a document's new tokens; only the blocks they touch are read.
      block: tokens of a block.

    Returns the means, 0 after the last block; an incomplete block's mean is that of its keys.
    """
    return _update_means(means_BNGK, k_BSGK, first_B, known_B, length_B, time, block)


def _positions(segment_ids_BS, old_positions_BS):
    """Positions of all S tokens, given those of the state: a document continues across the boundary."""
    slots = old_positions_BS.shape[1]
    index_BS = jnp.arange(segment_ids_BS.shape[1], dtype=jnp.int32)[None]
    first_BS = segments.first_token_index(segment_ids_BS)
    new_BT = jnp.zeros_like(segment_ids_BS[:, slots:])
    begin_BS = jnp.concatenate([old_positions_BS.astype(jnp.int32), new_BT], axis=1)
    positions_BS = index_BS - first_BS + jnp.take_along_axis(begin_BS, first_BS, axis=1)
    return jnp.concatenate([begin_BS[:, :slots], positions_BS[:, slots:]], axis=1)


def _check(q_BTHK, k_BTGK, v_BTGV, segment_ids, block, top_k, initial_state) -> None:
    op = "block_sparse_attention"
    if q_BTHK.ndim != 4 or q_BTHK.shape[1] < 1:
        raise ValueError(f"{op}: q must have shape (B, T, H, K) with T >= 1, got {q_BTHK.shape}.")
    batch, time = q_BTHK.shape[:2]
    _check_heads(op, q_BTHK, k_BTGK, v_BTGV, batch, time)
    _check_blocks(op, block, top_k)
    segments.check(op, segment_ids, batch, time)
    sizes = dict(B=batch, G=k_BTGK.shape[2], K=k_BTGK.shape[3], V=v_BTGV.shape[3])
    dispatch.check_state(op, initial_state, BlockSparseState, **sizes)


def _check_heads(op, q_BTHK, k_BTGK, v_BTGV, batch, time) -> None:
    heads, key_size = q_BTHK.shape[2:]
    if k_BTGK.ndim != 4 or k_BTGK.shape != (batch, time, k_BTGK.shape[2], key_size):
        raise ValueError(
            f"{op}: k must have shape (B, T, G, K) with B={batch}, T={time}, K={key_size}, "
            f"got {k_BTGK.shape}."
        )
    if v_BTGV.ndim != 4 or v_BTGV.shape[:3] != k_BTGK.shape[:3]:
        raise ValueError(
            f"{op}: v must agree with k on (B, T, G) = {k_BTGK.shape[:3]}, got {v_BTGV.shape}."
        )
    kv_heads = k_BTGK.shape[2]
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(
            f"{op}: query heads must be a multiple of key/value heads, got {heads} and {kv_heads}."
        )
    dispatch.check_arrays(op, q=q_BTHK, k=k_BTGK, v=v_BTGV)


def _check_blocks(op, block, top_k) -> None:
    for name, value in (("block", block), ("top_k", top_k)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{op}: {name} must be an int >= 1, got {value}.")
