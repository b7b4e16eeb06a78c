"""Indexed attention with time split over devices: each gathers its rows' earlier keys."""

import jax
from jaxtyping import Array, Float, Int

from kernels_pallas import indexed as op
from kernels_pallas import segments
from kernels_pallas.context.halo import halo


def indexed_attention(
    q_BTHK: Float[Array, "B T H K"],
    k_BTGK: Float[Array, "B T G K"],
    v_BTGV: Float[Array, "B T G V"],
    index_q_BTIJ: Float[Array, "B T I J"],
    index_k_BTJ: Float[Array, "B T J"],
    index_w_BTI: Float[Array, "B T I"],
    *,
    axis: str,
    top_k: int,
    pool: int = 1,
    pool_tail: bool = True,
    segment_ids: Int[Array, "B T"] | None = None,
    scale: float | None = None,
    initial_state: op.IndexedState | None = None,
    impl: str = "auto",
    precision=None,
) -> tuple[Array, Array]:
    """`kernels_pallas.indexed.indexed_attention` of this shard's tokens of longer rows.

    A query may choose any earlier token of its document, so every shard receives the keys and values
    of all shards to its left and passes them to the op as its state. A device then holds those of the
    whole row during this layer; queries, outputs and the work stay split.

    Arguments:
      axis: the mesh axis that splits time; all others as in the op.

    Returns and raises what the op does, and ValueError for a state, which would be the whole sequence.
    """
    if initial_state is not None:
        raise ValueError("context.indexed_attention: states are not supported.")
    batch, time = k_BTGK.shape[:2]
    slots = (jax.lax.axis_size(axis) - 1) * time
    ids_BT = segments.or_one_document(segment_ids, batch, time)
    past = op.IndexedState(*(halo(x, slots, axis) for x in (k_BTGK, v_BTGV, index_k_BTJ, ids_BT)))
    return op.indexed_attention(
        q_BTHK,
        k_BTGK,
        v_BTGV,
        index_q_BTIJ,
        index_k_BTJ,
        index_w_BTI,
        top_k=top_k,
        pool=pool,
        pool_tail=pool_tail,
        segment_ids=ids_BT,
        scale=scale,
        initial_state=past,
        impl=impl,
        precision=precision,
    )
