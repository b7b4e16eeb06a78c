"""Diagonal gated linear recurrence h_t = a_t * h_{t-1} + b_t (RG-LRU, HGRN, minGRU).

Griffin (De et al. 2024, arXiv:2402.19427) section 2.4 is the form this op serves.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kernels_pallas import dispatch, nonfinite, segments
from kernels_pallas.forms import Call
from kernels_pallas.linear_recurrence import chunked, hopper, reference, tpu

_DTYPES = ("float32", "bfloat16")
_COVERED = dict(
    dtype=_DTYPES,
    input_dtype=_DTYPES,
    state_dtype=("float32",),
    channels=range(1, 1 << 16),
    gated=(False, True),
)
SUPPORT = (
    *dispatch.XLA_ONLY,
    dispatch.Backend("tpu", "pallas", dict(platform=("tpu",)) | _COVERED),
    dispatch.Backend("hopper", "pallas", dict(platform=("gpu",)) | _COVERED, auto=False),
)
_FORMS = {
    "reference": reference.recurrence,
    "chunked": chunked.recurrence,
    "tpu": tpu.recurrence,
    "hopper": hopper.recurrence,
}


class RecurrenceState(NamedTuple):
    """The last h (float32 or float64) and its token's segment id.

    A segment id of 0 marks an empty state: its h is never used.
    """

    h_BD: Float[Array, "B D"]
    segment_ids_B: Int[Array, "B"]


def empty_state(batch: int, channels: int, dtype=jnp.float32) -> RecurrenceState:
    """The state before any token."""
    return RecurrenceState(jnp.zeros((batch, channels), dtype), jnp.zeros((batch,), jnp.int32))


def linear_recurrence(
    a_BTD: Float[Array, "B T D"],
    b_BTD: Float[Array, "B T D"],
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    initial_state: RecurrenceState | None = None,
    return_state: bool = False,
    impl: str = "auto",
) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], RecurrenceState]:
    """h_t = a_t h_{t-1} + b_t along time, per channel, within each document.

    At a document's first token the carried h counts as 0 (so a_t is unused there); padding
    gives 0. Exact for a = 0 and a = 1; nothing is divided by a product of gates.

    Arguments:
      a_BTD: decay, any floating dtype.
      b_BTD: input, any floating dtype.
      segment_ids: int (B, T), 0 = padding, a change = boundary; None = one document (id 1).
      initial_state: state of the tokens directly before; carried on only into the document
        whose id it holds.
      return_state: also return the state after the last token.
      impl: "auto", "reference" (token by token), "chunked" or "pallas".

    Returns h_BTD in float32 (float64 where an input is float64), or (h_BTD, RecurrenceState).
    Raises ValueError for shapes that do not agree, non-integer segment ids, unknown impl.
    """
    return _run(False, a_BTD, b_BTD, segment_ids, initial_state, return_state, impl)


def gated_recurrence(
    log_a_BTD: Float[Array, "B T D"],
    x_BTD: Float[Array, "B T D"],
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    initial_state: RecurrenceState | None = None,
    return_state: bool = False,
    impl: str = "auto",
) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], RecurrenceState]:
    """`linear_recurrence` with a_t = exp(log_a_t) and b_t = sqrt(1 - a_t^2) x_t: RG-LRU's gate.

    A kernel computes a and b on the fly and does not store them. A document's first x is not damped
    (b_t = x_t: no state is carried; recurrentgemma's convention), and the slope of the square root
    is bounded by 1,000, as it would be infinite where a is 1.

    Arguments:
      log_a_BTD: logarithm of the decay, <= 0, any floating dtype.
      x_BTD: input, any floating dtype.
      segment_ids, initial_state, return_state, impl: as in `linear_recurrence`.

    Returns and raises what `linear_recurrence` does.
    """
    return _run(True, log_a_BTD, x_BTD, segment_ids, initial_state, return_state, impl)


def _run(gated, a_BTD, b_BTD, segment_ids, initial_state, return_state, impl):
    op = "gated_recurrence" if gated else "linear_recurrence"
    _check(op, a_BTD, b_BTD, segment_ids, initial_state)
    batch, time, channels = a_BTD.shape
    dtype = dispatch.accumulator_dtype(a_BTD, b_BTD)
    ids_BT = segments.or_one_document(segment_ids, batch, time)
    state = initial_state if initial_state is not None else empty_state(batch, channels, dtype)
    case = dict(
        dtype=str(a_BTD.dtype),
        input_dtype=str(b_BTD.dtype),
        state_dtype=str(state.h_BD.dtype),
        channels=channels,
        gated=gated,
    )
    form = _FORMS[dispatch.resolve(op, impl, case, SUPPORT, time)]
    logs, inputs = ((a_BTD,), (b_BTD,)) if gated else ((), (b_BTD, a_BTD))
    contained = nonfinite.contain(ids_BT, inputs, logs=logs, state=initial_state)
    b_BTD, a_BTD = contained.inputs
    call = Call.of(ids_BT, *(contained.state or state), dtype)
    h_BTD = contained.mark(form(gated, a_BTD, b_BTD, call))
    if not return_state:
        return h_BTD
    return h_BTD, RecurrenceState(h_BTD[:, -1], ids_BT[:, -1])


def _check(op, a_BTD, b_BTD, segment_ids, initial_state) -> None:
    if a_BTD.ndim != 3 or a_BTD.shape[1] < 1:
        raise ValueError(f"{op}: a must have shape (B, T, D) with T >= 1, got {a_BTD.shape}.")
    batch, time, channels = a_BTD.shape
    dispatch.check_shape(op, "b", b_BTD, a_BTD.shape, "B T D")
    dispatch.check_arrays(op, a=a_BTD, b=b_BTD)
    segments.check(op, segment_ids, batch, time)
    dispatch.check_state(op, initial_state, RecurrenceState, B=batch, D=channels)
