"""Representative calls for the scorecard: 8,192 tokens, heads of 128, documents on."""

import jax.numpy as jnp

from kernels_pallas.aot.case import Array, Case, with_gradients
from kernels_pallas.attention import attention

BATCH, TIME, HEADS, SIZE = 2, 8192, 16, 128
BLOCK = 512
WINDOWS = (128, 512, 2048, None)


def pairs(window: int | None) -> int:
    """Queries times keys that they see, of one head in one row that is one document."""
    window = TIME if window is None else window
    return TIME * window - window * (window - 1) // 2


def flops(window: int | None) -> int:
    """Two products forward and five backward over the pairs that are seen."""
    return BATCH * HEADS * pairs(window) * 2 * SIZE * (2 + 5)


def arguments(kv_heads: int = HEADS, dtype=jnp.bfloat16) -> tuple[Array, ...]:
    """q, k, v, segment ids, and the cotangents of out and log-sum-exp."""
    queries, keys = (BATCH, TIME, HEADS, SIZE), (BATCH, TIME, kv_heads, SIZE)
    return (
        Array(queries, dtype), Array(keys, dtype), Array(keys, dtype),
        Array((BATCH, TIME), jnp.int32), Array(queries, dtype),
        Array((BATCH, TIME, HEADS), jnp.float32),
    )  # fmt: skip


def trips(window: int | None) -> tuple[float, ...]:
    """Mean trips of the loops over earlier blocks of keys, those without and those with a mask,
    of a row that is one document: the most that a row can need."""
    blocks = TIME // BLOCK
    if window is None:
        return (blocks - 1) / 2, 0.0
    clear = sum(min(i, (window - BLOCK) // BLOCK) for i in range(blocks)) / blocks
    reach = -(-(window - 1) // BLOCK)
    return clear, sum(min(i, reach) for i in range(blocks)) / blocks - clear


def _case(window: int | None, **options) -> Case:
    def call(q_BTHK, k_BTGK, v_BTGV, ids_BT):
        return attention(q_BTHK, k_BTGK, v_BTGV, segment_ids=ids_BT, window=window, impl="pallas")

    loops = {} if window is not None and window <= BLOCK else {"attention": trips(window)}
    return Case(
        f"attention W={window or 'all'}" + "".join(f" {k}={v}" for k, v in options.items()),
        with_gradients(call, differentiated=3, others=1),
        arguments(**options),
        tokens=BATCH * TIME * HEADS,
        flops=flops(window),
        trips=loops,
    )


CASES = (*map(_case, WINDOWS), _case(2048, kv_heads=2))
