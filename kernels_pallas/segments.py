"""Document boundaries from segment ids: the only definition of a document.

`segment_ids` is int32 (B, T), or other integers of at most 32 bits. 0 is padding; a change of id
between neighbours is a boundary. Here a run of padding is a document like any other; the ops also set
its outputs to 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from kernels_pallas import dispatch


def check(op: str, segment_ids, batch: int, time: int) -> None:
    """Raises ValueError unless `segment_ids` is None or integers of at most 32 bits (batch, time)."""
    if segment_ids is None:
        return
    dispatch.check_dtype(op, "segment_ids", segment_ids, "ids")
    dispatch.check_shape(op, "segment_ids", segment_ids, (batch, time), "batch time")


def or_one_document(segment_ids, batch: int, time: int) -> Int[Array, "B T"]:
    """`segment_ids` as int32, or all ones (one document, no padding) where it is None."""
    if segment_ids is None:
        return jnp.ones((batch, time), jnp.int32)
    return segment_ids.astype(jnp.int32)


def document_starts(
    segment_ids_BT: Int[Array, "B T"], previous_ids_B: Int[Array, "B"] | None = None
) -> Bool[Array, "B T"]:
    """True at the first token of every document.

    `previous_ids_B` is the segment id of the token before the first one; without it the
    first token starts a document.
    """
    if previous_ids_B is None:
        first_B1 = jnp.ones_like(segment_ids_BT[:, :1], dtype=bool)
    else:
        first_B1 = segment_ids_BT[:, :1] != previous_ids_B[:, None]
    changes_BT = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    return jnp.concatenate([first_B1, changes_BT], axis=1)


def of_first_document(
    state_B: Array, state_ids_B: Int[Array, "B"], segment_ids_BT: Int[Array, "B T"]
) -> Array:
    """A state's array (B, ...), zeros where the first token belongs to another document.

    A decay of 0 would not be enough: 0 times infinity is NaN, so one sequence that overflowed would
    spoil all later ones decoded in its row.
    """
    carried_B = (segment_ids_BT[:, 0] == state_ids_B) & (state_ids_B != 0)
    return jnp.where(carried_B.reshape(-1, *[1] * (state_B.ndim - 1)), state_B, 0)


def document_number(segment_ids_BT: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Counts documents from 1; unlike the ids, no two documents of a row share a number."""
    starts_BT = document_starts(_not_folded(segment_ids_BT))
    return jnp.cumsum(starts_BT, axis=1, dtype=jnp.int32)


def first_token_index(segment_ids_BT: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """The index of the first token of each token's document."""
    index_BT = jax.lax.broadcasted_iota(jnp.int32, segment_ids_BT.shape, 1)
    marks_BT = jnp.where(document_starts(_not_folded(segment_ids_BT)), index_BT, 0)
    return jax.lax.cummax(marks_BT, axis=1)


def _not_folded(segment_ids_BT):
    """The ids, hidden from the compiler: it would evaluate the scan of constant ids at compile time,
    which takes seconds instead of microseconds."""
    return jax.lax.optimization_barrier(segment_ids_BT)
