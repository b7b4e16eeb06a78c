"""Representative calls for the scorecard: RG-LRU at 8,192 tokens and 4,096 channels."""

import jax.numpy as jnp

from kernels_pallas.aot.case import Array, Case, with_gradients
from kernels_pallas.linear_recurrence import gated_recurrence, linear_recurrence

BATCH, TIME, CHANNELS = 1, 8192, 4096


def _case(name: str, function, dtype) -> Case:
    def call(a_BTD, b_BTD, ids_BT):
        return function(a_BTD, b_BTD, segment_ids=ids_BT, impl="pallas")

    shape = BATCH, TIME, CHANNELS
    return Case(
        name,
        with_gradients(call, differentiated=2, others=1),
        (
            Array(shape, dtype),
            Array(shape, dtype),
            Array(shape[:2], jnp.int32),
            Array(shape, jnp.float32),
        ),
        tokens=BATCH * TIME * (CHANNELS // 128),  # of 128 channels
        flops=BATCH * TIME * CHANNELS * 2 * (1 + 2),
        platforms=("tpu", "cuda"),
    )


CASES = (
    _case("linear_recurrence", linear_recurrence, jnp.float32),
    _case("linear_recurrence fused gate", gated_recurrence, jnp.float32),
    _case("linear_recurrence fused gate bf16", gated_recurrence, jnp.bfloat16),
)
