"""Representative calls for the scorecard: 8,192 tokens, heads of 128, documents on."""

import jax.numpy as jnp

from kernels_pallas.aot.case import Array, Case, with_gradients
from kernels_pallas.gated_slots import gated_slots

BATCH, TIME, HEADS, SIZE = 1, 8192, 16, 128


def _case(slots: int) -> Case:
    def call(q_BTHK, k_BTGK, v_BTGV, log_gate_BTGM, ids_BT):
        return gated_slots(q_BTHK, k_BTGK, v_BTGV, log_gate_BTGM, segment_ids=ids_BT, impl="pallas")

    tokens = (BATCH, TIME, HEADS)
    vector = Array((*tokens, SIZE))
    return Case(
        f"gated_slots M={slots}",
        with_gradients(call, differentiated=4, others=1),
        (
            vector, vector, vector, Array((*tokens, slots), jnp.float32),
            Array((BATCH, TIME), jnp.int32), vector, Array(tokens, jnp.float32),
        ),
        tokens=BATCH * TIME * HEADS,
        # A token writes into, and a query reads from, both slots; twice that backward.
        flops=3 * BATCH * TIME * HEADS * 4 * 2 * slots * SIZE,
    )  # fmt: skip


CASES = (_case(64),)
