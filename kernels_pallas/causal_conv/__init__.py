"""Short depthwise causal convolution that stops at document boundaries.

The filter before the recurrence in Mamba, Griffin, Gated DeltaNet and their kin.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kernels_pallas import dispatch, segments
from kernels_pallas.causal_conv import chunked, reference, tpu
from kernels_pallas.causal_conv.activation import ACTIVATIONS

MAX_WIDTH = 8
SUPPORT = (
    *dispatch.XLA_ONLY,
    dispatch.Backend(
        "tpu",
        "pallas",
        dict(
            platform=("tpu",),
            dtype=("float32", "bfloat16"),
            channels=range(1, 1 << 16),
            width=range(1, MAX_WIDTH + 1),
            activation=ACTIVATIONS,
        ),
    ),
)
_FORMS = {
    "reference": reference.causal_conv,
    "chunked": chunked.causal_conv,
    "tpu": tpu.causal_conv,
}


class ConvState(NamedTuple):
    """The last S = W - 1 inputs and their segment ids, oldest first; id 0 = empty slot."""

    x_BSD: Float[Array, "B S D"]
    segment_ids_BS: Int[Array, "B S"]


def empty_state(batch: int, width: int, channels: int, dtype=jnp.float32) -> ConvState:
    """The state before any token of a filter of `width` taps."""
    slots = width - 1
    return ConvState(
        jnp.zeros((batch, slots, channels), dtype), jnp.zeros((batch, slots), jnp.int32)
    )


def causal_conv(
    x_BTD: Float[Array, "B T D"],
    kernel_WD: Float[Array, "W D"],
    bias_D: Float[Array, "D"] | None = None,
    *,
    segment_ids: Int[Array, "B T"] | None = None,
    initial_state: ConvState | None = None,
    return_state: bool = False,
    activation: str | None = None,
    impl: str = "auto",
) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], ConvState]:
    """y_t = act(bias + sum_i kernel_WD[i] * x_{t-i}) over the taps in t's own document.

    kernel_WD[0] multiplies the current token, kernel_WD[W-1] the oldest (PyTorch's and
    Mamba's conv1d weights are this flipped). Padding gives 0, bias included.

    Arguments:
      x_BTD: input, any floating dtype; sums are float32 (float64 for float64).
      kernel_WD: one filter per channel, width 1 to 8.
      bias_D: optional.
      segment_ids: int (B, T), 0 = padding, a change = boundary; None = one document (id 1).
      initial_state: the W - 1 inputs directly before the first token.
      return_state: also return the state after the last token, whose inputs have no activation.
      activation: act, of the sums before they are rounded to x's dtype: "silu", or None for none.
        Gradients compute the sums again; nothing but the inputs is saved.
      impl: "auto", "reference" (token by token), "chunked" or "pallas".

    Returns y_BTD in x's dtype, or (y_BTD, ConvState).
    Raises ValueError for shapes that do not agree, a width outside 1..8, non-integer
    segment ids, unknown activation or impl.
    """
    _check(x_BTD, kernel_WD, bias_D, segment_ids, initial_state, activation)
    batch, time, channels = x_BTD.shape
    width = kernel_WD.shape[0]
    case = dict(dtype=str(x_BTD.dtype), channels=channels, width=width, activation=activation)
    form = _FORMS[dispatch.resolve("causal_conv", impl, case, SUPPORT)]

    if initial_state is None:
        initial_state = empty_state(batch, width, channels, x_BTD.dtype)
    if bias_D is None:
        bias_D = jnp.zeros((channels,), kernel_WD.dtype)
    ids_BT = segments.or_one_document(segment_ids, batch, time)
    ids_BS = jnp.concatenate([initial_state.segment_ids_BS.astype(jnp.int32), ids_BT], axis=1)
    state_BSD = initial_state.x_BSD.astype(x_BTD.dtype)
    y_BTD = form(x_BTD, state_BSD, kernel_WD, bias_D, ids_BS, activation)
    if not return_state:
        return y_BTD
    slots = width - 1
    last_BSD = jnp.concatenate([state_BSD, x_BTD[:, max(0, time - slots) :]], axis=1)
    return y_BTD, ConvState(last_BSD[:, last_BSD.shape[1] - slots :], ids_BS[:, time:])


def _check(x_BTD, kernel_WD, bias_D, segment_ids, initial_state, activation) -> None:
    op = "causal_conv"
    if activation not in ACTIVATIONS:
        raise ValueError(f'{op}: activation must be "silu" or None, got {activation!r}.')
    if x_BTD.ndim != 3 or x_BTD.shape[1] < 1:
        raise ValueError(f"{op}: x must have shape (B, T, D) with T >= 1, got {x_BTD.shape}.")
    batch, time, channels = x_BTD.shape
    if kernel_WD.ndim != 2 or not 1 <= kernel_WD.shape[0] <= MAX_WIDTH:
        raise ValueError(
            f"{op}: kernel must have shape (W, D) with W in 1..{MAX_WIDTH}, got {kernel_WD.shape}."
        )
    width = kernel_WD.shape[0]
    dispatch.check_shape(op, "kernel", kernel_WD, (width, channels), "W D")
    if bias_D is not None:
        dispatch.check_shape(op, "bias", bias_D, (channels,), "D")
    dispatch.check_arrays(op, x=x_BTD, kernel=kernel_WD, bias=bias_D)
    segments.check(op, segment_ids, batch, time)
    dispatch.check_state(op, initial_state, ConvState, B=batch, S=width - 1, D=channels)
