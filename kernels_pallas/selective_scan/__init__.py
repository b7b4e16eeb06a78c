"""Selective scan h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, y_t = C_t h_t: the op of Mamba-1.

Every channel has a state of its own of N entries, each with its own decay (Gu and Dao 2023,
arXiv:2312.00752, algorithm 2). Mamba-2, whose heads share a decay, is `gated_linear`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kernels_pallas import dispatch, nonfinite, segments
from kernels_pallas.forms import Call
from kernels_pallas.selective_scan import chunked, reference

SUPPORT = dispatch.XLA_ONLY
_FORMS = {"reference": reference.selective_scan, "chunked": chunked.selective_scan}


class SelectiveScanState(NamedTuple):
    """The last h (float32 or float64) and its token's segment id.

    A segment id of 0 marks an empty state: its h is never used.
    """

    h_BDN: Float[Array, "B D N"]
    segment_ids_B: Int[Array, "B"]


def empty_state(batch: int, channels: int, size: int, dtype=jnp.float32) -> SelectiveScanState:
    """The state before any token; `size` is N, the entries of a channel's state."""
    h_BDN = jnp.zeros((batch, channels, size), dtype)
    return SelectiveScanState(h_BDN, jnp.zeros((batch,), jnp.int32))


def selective_scan(
    x_BTD: Float[Array, "B T D"],
    dt_BTD: Float[Array, "B T D"],
    a_DN: Float[Array, "D N"],
    b_BTN: Float[Array, "B T N"],
    c_BTN: Float[Array, "B T N"],
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    initial_state: SelectiveScanState | None = None,
    return_state: bool = False,
    impl: str = "auto",
) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], SelectiveScanState]:
    """y_td = sum_n c_tn h_tdn with h_tdn = exp(dt_td a_dn) h_{t-1,dn} + dt_td b_tn x_td.

    At a document's first token the carried h counts as 0; padding gives 0. No decay is divided
    by, and none is the exp of a sum over tokens. No form holds an array (B, T, D, N).

    Arguments:
      x_BTD: input, any floating dtype.
      dt_BTD: time steps, >= 0.
      a_DN: rates of the states, <= 0 and finite, the same for all tokens.
      b_BTN, c_BTN: input and output maps, which all channels share.
      segment_ids: int (B, T), 0 = padding, a change = boundary; None = one document (id 1).
      initial_state: state of the tokens directly before; carried on only into the document
        whose id it holds.
      return_state: also return the state after the last token.
      impl: "auto", "reference" (token by token), "chunked"; "pallas" has no kernel.

    Returns y_BTD in x's dtype, or (y_BTD, SelectiveScanState).
    Raises ValueError for shapes that do not agree, non-integer segment ids, unknown impl.
    """
    _check(x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, segment_ids, initial_state)
    batch, time, channels = x_BTD.shape
    dtype = dispatch.accumulator_dtype(x_BTD, dt_BTD, a_DN, b_BTN, c_BTN)
    ids_BT = segments.or_one_document(segment_ids, batch, time)
    case = dict(dtype=dispatch.dtypes(x_BTD, b_BTN, c_BTN), channels=channels, size=a_DN.shape[1])
    form = _FORMS[dispatch.resolve("selective_scan", impl, case, SUPPORT, time)]
    contained = nonfinite.contain(ids_BT, (x_BTD, dt_BTD, b_BTN, c_BTN), state=initial_state)
    x_BTD, dt_BTD, b_BTN, c_BTN = contained.inputs
    state = contained.state or empty_state(batch, channels, a_DN.shape[1], dtype)
    call = Call.of(ids_BT, *state, dtype)
    y_BTD, h_BDN = form(x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, call)
    y_BTD = contained.mark(y_BTD.astype(x_BTD.dtype))
    if not return_state:
        return y_BTD
    return y_BTD, contained.mark_state(SelectiveScanState(h_BDN, ids_BT[:, -1]))


def _check(x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, segment_ids, initial_state) -> None:
    op = "selective_scan"
    if x_BTD.ndim != 3 or x_BTD.shape[1] < 1:
        raise ValueError(f"{op}: x must have shape (B, T, D) with T >= 1, got {x_BTD.shape}.")
    if a_DN.ndim != 2:
        raise ValueError(f"{op}: a must have shape (D, N), got {a_DN.shape}.")
    batch, time, channels = x_BTD.shape
    size = a_DN.shape[1]
    dispatch.check_shape(op, "dt", dt_BTD, x_BTD.shape, "B T D")
    dispatch.check_shape(op, "a", a_DN, (channels, size), "D N")
    for name, array in dict(b=b_BTN, c=c_BTN).items():
        dispatch.check_shape(op, name, array, (batch, time, size), "B T N")
    dispatch.check_arrays(op, x=x_BTD, dt=dt_BTD, a=a_DN, b=b_BTN, c=c_BTN)
    segments.check(op, segment_ids, batch, time)
    sizes = dict(B=batch, D=channels, N=size)
    dispatch.check_state(op, initial_state, SelectiveScanState, **sizes)
