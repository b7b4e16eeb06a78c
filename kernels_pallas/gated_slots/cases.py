"""Representative calls for the scorecard: 8,192 tokens, heads of 128, with segment ids."""

import jax.numpy as jnp

from kernels_pallas.aot.case import Array, Case, with_gradients
from kernels_pallas.gated_slots import gated_slots

BATCH, TIME, HEADS, SIZE = 1, 8192, 16, 128


def _case(name: str, slots: int, kv_heads: int = HEADS, platform: str = "tpu") -> Case:
    def call(q_BTHK, k_BTGK, v_BTGV, log_gate_BTGM, ids_BT):
        return gated_slots(q_BTHK, k_BTGK, v_BTGV, log_gate_BTGM, segment_ids=ids_BT, impl="pallas")

    tokens, kv_tokens = (BATCH, TIME, HEADS), (BATCH, TIME, kv_heads)
    query, vector = Array((*tokens, SIZE)), Array((*kv_tokens, SIZE))
    return Case(
        name,
        with_gradients(call, differentiated=4, others=1),
        (
            query,
            vector,
            vector,
            Array((*kv_tokens, slots), jnp.float32),
            Array((BATCH, TIME), jnp.int32),
            query,
            Array(tokens, jnp.float32),
        ),
        tokens=BATCH * TIME * HEADS,
        # A token writes into, and a query reads from, both slots; twice that backward.
        flops=3 * BATCH * TIME * (HEADS + kv_heads) * 4 * slots * SIZE,
        platforms=(platform,),
    )


CASES = (
    _case("gated_slots M=64", 64),
    _case("gated_slots M=64, Hopper", 64, platform="cuda"),
    _case("gated_slots M=128 kv_heads=4, Hopper", 128, kv_heads=4, platform="cuda"),
)
