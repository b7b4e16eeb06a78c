"""Representative calls for the scorecard: 8,192 tokens, with segment ids."""

import jax.numpy as jnp

from kernels_pallas.aot.case import Array, Case, with_gradients
from kernels_pallas.delta_rule import delta_rule
from kernels_pallas.delta_rule.product import delta_product

BATCH, TIME = 1, 8192
# The loops of `tpu_nonfinite`: over rows and tokens of inputs; backward first over tokens of a cotangent.
NOT_RUN = {"forward": (0, 0), "backward": (0, 0, 0)}


def _case(
    name: str,
    groups: int,
    heads: int,
    key_size: int,
    value_size: int,
    gate: str,
    platform="tpu",
    erase=False,
    unit_eps: float | None = None,
    updates: int = 1,
) -> Case:
    """`updates` of a token, each with its keys, values and beta, as in `delta_product`."""

    def call(q_BTGK, k, v, beta, log_decay, *others):
        *erase_key, ids_BT = others
        erase = erase_key[0] if erase_key else None
        options = dict(segment_ids=ids_BT, unit_eps=unit_eps, impl="pallas")
        if updates == 1:
            return delta_rule(q_BTGK, k, v, beta, log_decay, erase_BTGK=erase, **options)
        inputs = q_BTGK, k, v, beta, log_decay
        return delta_product(delta_rule, *inputs, erase_BTNGK=erase, **options)

    steps = (BATCH, TIME) + ((updates,) if updates > 1 else ())
    keys, values = Array((*steps, groups, key_size)), Array((*steps, heads, value_size))
    gates = (BATCH, TIME, heads) + ((key_size,) if gate == "channel" else ())
    return Case(
        name,
        with_gradients(call, differentiated=5 + erase, others=1),
        (
            Array((BATCH, TIME, groups, key_size)),
            keys,
            values,
            Array((*steps, heads), jnp.float32),
            Array(gates, jnp.float32),
            *[keys] * erase,
            Array((BATCH, TIME), jnp.int32),
            Array((BATCH, TIME, heads, value_size)),
        ),
        tokens=BATCH * TIME * heads,
        # Each update reads the state for a key and writes it; a query reads it; twice that backward.
        flops=BATCH * TIME * heads * (4 * updates + 2) * key_size * value_size * 3,
        platforms=(platform,),
        trips=NOT_RUN if platform == "tpu" else {},
    )


CASES = (
    _case("delta_rule scalar gate", 16, 16, 128, 128, "head"),
    _case("delta_rule scalar gate, keys of length 1", 16, 16, 128, 128, "head", unit_eps=1e-6),
    _case("delta_rule scalar gate 16 of 32 heads", 16, 32, 128, 128, "head"),
    _case("delta_rule scalar gate K=64 V=128", 16, 16, 64, 128, "head"),
    _case("delta_rule scalar gate K=256 V=256", 4, 4, 256, 256, "head"),
    _case("delta_rule channel gate", 32, 32, 128, 128, "channel"),
    _case("delta_rule channel gate, keys of length 1", 32, 32, 128, 128, "channel", unit_eps=1e-6),
    _case("delta_rule channel gate K=64 V=128", 16, 16, 64, 128, "channel"),
    _case("delta_rule channel gate K=256 V=256", 4, 4, 256, 256, "channel"),
    _case("delta_rule erase key, scalar gate", 16, 16, 128, 128, "head", erase=True),
    _case("delta_rule erase key, channel gate", 32, 32, 128, 128, "channel", erase=True),
    _case("delta_rule erase key, channel gate K=64 V=64", 32, 32, 64, 64, "channel", erase=True),
    _case("delta_product scalar gate, 2 updates", 16, 16, 128, 128, "head", updates=2),
    _case("delta_product RWKV-7", 32, 32, 64, 64, "channel", erase=True, updates=2),
    _case("delta_rule scalar gate, Hopper", 16, 16, 128, 128, "head", "cuda"),
    _case("delta_rule scalar gate 16 of 32 heads, Hopper", 16, 32, 128, 128, "head", "cuda"),
    _case("delta_rule scalar gate K=64 V=64, Hopper", 16, 16, 64, 64, "head", "cuda"),
    _case("delta_rule channel gate, Hopper", 32, 32, 128, 128, "channel", "cuda"),
    _case("delta_rule channel gate K=64 V=128, Hopper", 16, 16, 64, 128, "channel", "cuda"),
    _case("delta_rule erase key, scalar gate, Hopper", 16, 16, 128, 128, "head", "cuda", True),
    _case("delta_rule erase key, channel gate, Hopper", 32, 32, 128, 128, "channel", "cuda", True),
    _case(
        "delta_rule erase key, channel gate K=64 V=64, Hopper",
        32,
        32,
        64,
        64,
        "channel",
        "cuda",
        True,
    ),
    _case(
        "delta_product scalar gate, 2 updates, Hopper", 16, 16, 128, 128, "head", "cuda", updates=2
    ),
    _case("delta_product RWKV-7, Hopper", 32, 32, 64, 64, "channel", "cuda", True, updates=2),
)
