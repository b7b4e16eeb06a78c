"""Representative calls for the scorecard: the filters of a Gated DeltaNet layer."""

import jax.numpy as jnp

from kernels_pallas.aot.case import Array, Case, with_gradients
from kernels_pallas.causal_conv import causal_conv

BATCH, TIME, CHANNELS = 1, 8192, 4096


def _case(name: str, width: int, dtype, activation: str | None = None) -> Case:
    def call(x_BTD, kernel_WD, ids_BT):
        options = dict(segment_ids=ids_BT, activation=activation)
        return causal_conv(x_BTD, kernel_WD, **options, impl="pallas")

    shape = BATCH, TIME, CHANNELS
    return Case(
        name,
        with_gradients(call, differentiated=2, others=1),
        (
            Array(shape, dtype),
            Array((width, CHANNELS), jnp.float32),
            Array(shape[:2], jnp.int32),
            Array(shape, dtype),
        ),
        tokens=BATCH * TIME * (CHANNELS // 128),  # of 128 channels
        flops=BATCH * TIME * CHANNELS * 2 * 3 * width,
    )


CASES = (
    _case("causal_conv bf16", 4, jnp.bfloat16),
    _case("causal_conv", 4, jnp.float32),
    _case("causal_conv silu bf16", 4, jnp.bfloat16, "silu"),
)
