"""The short causal convolution with time split over devices: a halo of W - 1 inputs."""

import jax
from jaxtyping import Array, Float, Int

from kernels_pallas import causal_conv as op
from kernels_pallas import segments
from kernels_pallas.context.halo import halo, of_last_shard


def causal_conv(
    x_BTD: Float[Array, "B T D"],
    kernel_WD: Float[Array, "W D"],
    bias_D: Float[Array, "D"] | None = None,
    *,
    axis: str,
    segment_ids: Int[Array, "B T"] | None = None,
    initial_state: op.ConvState | None = None,
    return_state: bool = False,
    activation: str | None = None,
    impl: str = "auto",
) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], op.ConvState]:
    """`kernels_pallas.causal_conv.causal_conv` of this shard's tokens of longer rows.

    Arguments:
      x_BTD, segment_ids: this shard's tokens.
      kernel_WD, bias_D: the same on every shard.
      axis: the mesh axis that splits time.
      initial_state: the inputs before the rows, the same on every shard.
      return_state: also return the state after the rows' last token, on every shard.
      activation, impl: as in the op.

    Returns and raises what the op does.
    """
    slots = kernel_WD.shape[0] - 1
    ids_BT = segments.or_one_document(segment_ids, *x_BTD.shape[:2])
    x_BSD, ids_BS = (None, None) if initial_state is None else initial_state
    state = op.ConvState(halo(x_BTD, slots, axis, x_BSD), halo(ids_BT, slots, axis, ids_BS))
    y_BTD, state = op.causal_conv(
        x_BTD,
        kernel_WD,
        bias_D,
        segment_ids=ids_BT,
        initial_state=state,
        return_state=True,
        activation=activation,
        impl=impl,
    )
    if not return_state:
        return y_BTD
    return y_BTD, jax.tree.map(lambda x: of_last_shard(x, axis), state)
