"""NaN and infinity kept within their document where time is split over devices."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from kernels_pallas import nonfinite, segments
from kernels_pallas.context.halo import entering_state, ids_before


def contain(
    ids_BT: Int[Array, "B T"],
    inputs: tuple,
    axis: str,
    *,
    logs: tuple = (),
    state=None,
) -> nonfinite.Contained:
    """`kernels_pallas.nonfinite.contain` of this shard's tokens of longer rows.

    Shards exchange one number per row: whether the document that enters is spoilt.

    Arguments:
      axis: the mesh axis that splits time.
      state: the state before the rows, the same on every shard.
    """
    own = nonfinite.contain(ids_BT, inputs, logs=logs)
    first_B, bad_B = None, jnp.zeros(ids_BT.shape[:1], bool)
    if state is not None:
        state, bad_B = _finite_state(state)
        first_B = state.segment_ids_B
    before_B = ids_before(ids_BT, axis, first_B)
    starts_BT = segments.document_starts(ids_BT, before_B)
    unbroken_B = ~jnp.any(starts_BT | (ids_BT == 0), axis=1)
    as_floats = (x.astype(jnp.float32) for x in (unbroken_B, own.spoilt_BT[:, -1], bad_B))
    entered_B = entering_state(*as_floats, jnp.multiply, axis) > 0
    is_first_BT = jnp.cumsum(starts_BT | (ids_BT == 0), axis=1, dtype=jnp.int32) == 0
    spoilt_BT = own.spoilt_BT | (entered_B[:, None] & is_first_BT)
    # Exchanged before what the op itself exchanges: with two collectives under way at once, the
    # simulated devices of a CPU can wait for each other for ever.
    inputs, spoilt_BT = jax.lax.optimization_barrier((own.inputs, spoilt_BT))
    return own._replace(inputs=inputs, state=state, spoilt_BT=spoilt_BT)


def _finite_state(state) -> tuple:
    """The state with 0 for what is not finite, and the rows where that was."""
    ids_B1 = state.segment_ids_B[:, None]
    return nonfinite.contain_state(state, ids_B1)
