"""Representative calls for the scorecard: 8,192 tokens, with segment ids."""

import jax.numpy as jnp

from kernels_pallas.aot.case import Array, Case, with_gradients
from kernels_pallas.delta_rule import delta_rule

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
) -> Case:
    def call(q_BTGK, k_BTGK, v_BTHV, beta_BTH, log_decay, *others):
        *erase_key, ids_BT = others
        return delta_rule(
            q_BTGK,
            k_BTGK,
            v_BTHV,
            beta_BTH,
            log_decay,
            erase_BTGK=erase_key[0] if erase else None,
            segment_ids=ids_BT,
            unit_eps=unit_eps,
            impl="pallas",
        )

    keys = Array((BATCH, TIME, groups, key_size))
    values = Array((BATCH, TIME, heads, value_size))
    beta = BATCH, TIME, heads
    gates = beta + ((key_size,) if gate == "channel" else ())
    return Case(
        name,
        with_gradients(call, differentiated=5 + erase, others=1),
        (
            keys,
            keys,
            values,
            Array(beta, jnp.float32),
            Array(gates, jnp.float32),
            *[keys] * erase,
            Array((BATCH, TIME), jnp.int32),
            values,
        ),
        tokens=BATCH * TIME * heads,
        # Reads the state for a key, writes it, reads it for a query; twice that backward.
        flops=BATCH * TIME * heads * 6 * key_size * value_size * 3,
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
)
