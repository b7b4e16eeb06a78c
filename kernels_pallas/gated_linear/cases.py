"""Representative calls for the scorecard: 8,192 tokens, with segment ids."""

import jax.numpy as jnp

from kernels_pallas.aot.case import Array, Case, with_gradients
from kernels_pallas.gated_linear import gated_linear

BATCH, TIME = 1, 8192
# The loops of `tpu_nonfinite`: over rows and tokens of inputs; backward first over tokens of a cotangent.
# Gates of channels are no rows.
NOT_RUN = dict(
    head={"forward": (0, 0), "backward": (0, 0, 0)}, channel={"forward": (0,), "backward": (0, 0)}
)


def _case(
    name: str,
    groups: int,
    heads: int,
    key_size: int,
    value_size: int,
    gate: str,
    platform="tpu",
    steps: int = 1,
    value_dtype=jnp.bfloat16,
) -> Case:
    """`steps` are Mamba-3's inputs a token, each a step of the op."""
    time = TIME * steps

    def call(q_BTGK, k_BTGK, v_BTHV, log_decay, ids_BT):
        return gated_linear(
            q_BTGK,
            k_BTGK,
            v_BTHV,
            log_decay,
            segment_ids=ids_BT,
            scale=key_size**-0.5,
            impl="pallas",
        )

    keys = Array((BATCH, time, groups, key_size))
    values = Array((BATCH, time, heads, value_size), value_dtype)
    gates = (BATCH, time, heads) + ((key_size,) if gate == "channel" else ())
    return Case(
        name,
        with_gradients(call, differentiated=4, others=1),
        (keys, keys, values, Array(gates, jnp.float32), Array((BATCH, time), jnp.int32), values),
        tokens=BATCH * TIME * heads,
        # Writing and reading the state, and twice that backward.
        flops=BATCH * time * heads * 4 * key_size * value_size * 3,
        platforms=(platform,),
        trips=NOT_RUN[gate] if platform == "tpu" else {},
    )


CASES = (
    _case("gated_linear scalar gate", 16, 16, 128, 128, "head"),
    _case("gated_linear scalar gate Mamba-2", 1, 32, 128, 64, "head"),
    # As the mixer calls it: keys of each head, values of float32.
    _case("gated_linear Mamba-3", 32, 32, 128, 64, "head", value_dtype=jnp.float32),
    _case("gated_linear Mamba-3 of rank 4", 32, 32, 128, 64, "head", "tpu", 4, jnp.float32),
    _case("gated_linear scalar gate K=256 V=256", 4, 4, 256, 256, "head"),
    _case("gated_linear channel gate", 16, 16, 128, 128, "channel"),
    _case("gated_linear channel gate K=64 V=128", 16, 16, 64, 128, "channel"),
    _case("gated_linear scalar gate, Hopper", 16, 16, 128, 128, "head", "cuda"),
    _case("gated_linear scalar gate Mamba-2, Hopper", 1, 32, 128, 64, "head", "cuda"),
    _case("gated_linear Mamba-3, Hopper", 32, 32, 128, 64, "head", "cuda", 1, jnp.float32),
    _case(
        "gated_linear Mamba-3 of rank 4, Hopper", 32, 32, 128, 64, "head", "cuda", 4, jnp.float32
    ),
    _case("gated_linear scalar gate K=256 V=256, Hopper", 4, 4, 256, 256, "head", "cuda"),
    _case("gated_linear channel gate, Hopper", 16, 16, 128, 128, "channel", "cuda"),
    _case("gated_linear channel gate K=64 V=128, Hopper", 16, 16, 64, 128, "channel", "cuda"),
)
