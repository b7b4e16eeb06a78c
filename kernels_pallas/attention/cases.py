"""Representative calls for the scorecard: 8,192 tokens, heads of 128, with segment ids.

One Hopper program serves every window."""

import jax.numpy as jnp

from kernels_pallas.aot.case import Array, Case, with_gradients
from kernels_pallas.attention import attention, tpu_spans

BATCH, TIME, HEADS, SIZE = 2, 8192, 16, 128
BLOCK = 512
WINDOWS = (128, 512, 2048, None)


def pairs(window: int | None) -> int:
    """Visible (query, key) pairs of one head in a row that is one document."""
    window = TIME if window is None else window
    return TIME * window - window * (window - 1) // 2


def flops(window: int | None, size: int = SIZE) -> int:
    """Two products forward and five backward over the visible pairs."""
    return BATCH * HEADS * pairs(window) * 2 * size * (2 + 5)


def arguments(kv_heads: int = HEADS, size: int = SIZE, dtype=jnp.bfloat16) -> tuple[Array, ...]:
    """q, k, v, segment ids, and the cotangents of out and log-sum-exp."""
    queries, keys = (BATCH, TIME, HEADS, size), (BATCH, TIME, kv_heads, size)
    return (
        Array(queries, dtype),
        Array(keys, dtype),
        Array(keys, dtype),
        Array((BATCH, TIME), jnp.int32),
        Array(queries, dtype),
        Array((BATCH, TIME, HEADS), jnp.float32),
    )


def trips(window: int | None) -> tuple[float, ...]:
    """Mean trip counts of the loops over earlier key blocks, without and with a mask, for a row that
    is one document, which has the highest counts."""
    blocks = TIME // BLOCK
    if window is None:
        return (blocks - 1) / 2, 0.0
    clear = sum(min(i, (window - BLOCK) // BLOCK) for i in range(blocks)) / blocks
    reach = -(-(window - 1) // BLOCK)
    return clear, sum(min(i, reach) for i in range(blocks)) / blocks - clear


def _case(
    window: int | None, soft_cap=None, forget=False, platform: str = "tpu", **options
) -> Case:
    def call(*arrays):
        q_BTHK, k_BTGK, v_BTGV, *gates, ids_BT = arrays
        return attention(
            q_BTHK,
            k_BTGK,
            v_BTGV,
            segment_ids=ids_BT,
            window=window,
            soft_cap=soft_cap,
            log_forget_BTH=gates[0] if forget else None,
            impl="pallas",
        )

    q, k, v, *others = arguments(**options)
    gates = (Array((BATCH, TIME, HEADS), jnp.float32),) if forget else ()
    walks = () if window is not None and window <= BLOCK else trips(window)
    # First the loops of `tpu_nonfinite`, which do not run: over keys and queries, and over five arrays.
    loops = {"attention_forward": (0, 0, *walks), "attention_backward": (0,) * 5 + walks}
    if platform == "cuda" or forget:  # which have none
        loops = {"attention": walks} if walks else {}
    named = options if soft_cap is None else options | dict(soft_cap=soft_cap)
    named = named | dict(forget=True) if forget else named
    return Case(
        f"attention W={window or 'all'}"
        + "".join(f" {k}={v}" for k, v in named.items())
        + (", Hopper" if platform == "cuda" else ""),
        with_gradients(call, differentiated=3 + len(gates), others=1),
        (q, k, v, *gates, *others),
        tokens=BATCH * TIME * HEADS,
        flops=flops(window, options.get("size", SIZE)),
        trips=loops,
        platforms=(platform,),
    )


def _long(forget: bool = False, time: int = 65_536) -> Case:
    """Full attention to more keys than VMEM holds, of one row: bundles per token of the kernels for older
    keys are those of one distance, at which half of the rows see all of a span, on average."""
    length = tpu_spans.span_length(time, SIZE, SIZE, jnp.bfloat16, int(forget))
    keys, older, own = (time, HEADS, SIZE), (length / BLOCK, 0.0), ((length / BLOCK - 1) / 2, 0.0)
    per_head = Array((1, time, HEADS), jnp.float32)
    gates = (per_head,) if forget else ()

    def call(q_BTHK, k_BTHK, v_BTHV, *others):
        *gates, ids_BT = others
        options = dict(segment_ids=ids_BT, log_forget_BTH=gates[0] if forget else None)
        return attention(q_BTHK, k_BTHK, v_BTHV, **options, impl="pallas")

    trips = {
        "attention_forward_older": (0, *older),
        "attention_backward_older": (0,) * 5 + older,
        "attention_forward": (0, 0, *own),
        "attention_backward": (0,) * 5 + own,
    }
    if forget:  # without the loops of `tpu_nonfinite`
        trips = {"older": older, "attention": own}
    return Case(
        f"attention W=all, {time:,} tokens" + (" forget=True" if forget else ""),
        with_gradients(call, differentiated=3 + len(gates), others=1),
        (*map(Array, [(1, *keys)] * 3), *gates, Array((1, time), jnp.int32))
        + (Array((1, *keys)), per_head),
        tokens=time * HEADS,
        flops=HEADS * time * (time + 1) // 2 * 2 * SIZE * (2 + 5),
        active=dict(older=0.5),
        trips=trips,
    )


CASES = (
    *map(_case, WINDOWS),
    _case(2048, kv_heads=2),
    _case(2048, size=256),
    _case(None, size=256),
    _case(2048, soft_cap=50.0),
    _case(None, size=256, soft_cap=50.0),
    _long(),
    _long(forget=True),
    _case(512, forget=True),
    _case(None, forget=True),
    _case(512, platform="cuda"),
    _case(2048, kv_heads=2, platform="cuda"),
    _case(512, size=64, platform="cuda"),
    _case(512, kv_heads=2, soft_cap=50.0, platform="cuda"),
    _case(512, forget=True, platform="cuda"),
    _case(2048, forget=True, kv_heads=2, platform="cuda"),
    _case(512, forget=True, size=64, platform="cuda"),
)
