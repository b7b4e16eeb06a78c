"""Block-sparse attention with time split over devices: each gathers its rows' earlier keys."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kernels_pallas import block_sparse as op
from kernels_pallas import segments
from kernels_pallas.context.halo import halo


def block_sparse_attention(
    q_BTHK: Float[Array, "B T H K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTGV: Float[Array, "B T G V"],
    *,
    axis: str,
    block: int,
    top_k: int,
    segment_ids: Int[Array, "B T"] | None = None,
    scale: float | None = None,
    initial_state: op.BlockSparseState | None = None,
    return_state: bool = False,
    impl: str = "auto",
    precision=None,
) -> tuple:
    """`kernels_pallas.block_sparse.block_sparse_attention` of this shard's tokens of longer rows.

    A query may select any earlier block of its document, so every shard receives the keys and values
    of all shards to its left and passes them to the op as its state. A device then holds the keys and
    values of the whole row during this layer; queries, outputs and the work on pairs stay split.

    Arguments:
      q_BTHK, k_BTGK, v_BTGV, segment_ids: this shard's tokens.
      axis: the mesh axis that splits time.
      block, top_k, scale, impl, precision: as in the op.

    Returns and raises what the op does, and ValueError for a state, which would be the whole sequence.
    """
    if return_state or initial_state is not None:
        raise ValueError("context.block_sparse_attention: states are not supported.")
    batch, time = k_BTGK.shape[:2]
    slots = (jax.lax.axis_size(axis) - 1) * time
    ids_BT = segments.or_one_document(segment_ids, batch, time)
    ids_BS = halo(ids_BT, slots, axis)
    positions_BS = jnp.arange(slots, dtype=jnp.int32)[None] - segments.first_token_index(ids_BS)
    past = op.BlockSparseState(
        halo(k_BTGK, slots, axis), halo(v_BTGV, slots, axis), ids_BS, positions_BS
    )
    return op.block_sparse_attention(
        q_BTHK,
        k_BTGK,
        v_BTGV,
        block=block,
        top_k=top_k,
        segment_ids=ids_BT,
        scale=scale,
        initial_state=past,
        impl=impl,
        precision=precision,
    )
