"""Gated slots wrapped for the laws, and the faults they must catch."""

import jax
import jax.numpy as jnp

from kernels_pallas import gated_slots as slots_op
from kernels_pallas.gated_slots import chunked
from kernels_pallas.testing import Subject, normal
from subjects.faults import Fault, boundary_dropped, causal, finite, forms, packed, split


def slots_subject(
    heads=4, kv_heads=2, slots=6, key_size=8, value_size=5, strength=1.0, tied=True,
    mask_empty=False, gaps=False, scale=None,
) -> Subject:  # fmt: skip
    """`strength` scales the log-gates; `tied` writes 1 - gate; `gaps` writes not every token."""

    def apply(inputs, params, segment_ids, state, impl):
        written_BT = inputs["mark"][..., 0] > 0 if gaps else None
        out, lse, final = slots_op.gated_slots(
            inputs["q"], inputs["k"], inputs["v"], inputs["log_gate"], inputs.get("write"),
            written_BT=written_BT, segment_ids=segment_ids, scale=scale, mask_empty=mask_empty,
            initial_state=state, return_state=True, impl=impl,
        )  # fmt: skip
        nothing_BTH = lse == slots_op.NEGATIVE
        outputs = dict(out=out, lse=jnp.where(nothing_BTH, 0, lse), found=1.0 - nothing_BTH)
        return outputs, final

    def inputs(rng, batch, time, dtype):
        gates = (batch, time, kv_heads, slots)
        # One gate in ten is exactly 1.
        log_gate = strength * jax.nn.log_sigmoid(2 * normal(rng, gates, dtype))
        log_gate = jnp.where(normal(rng, gates, dtype) > 1.28, 0, log_gate)
        arrays = dict(
            q=normal(rng, (batch, time, heads, key_size), dtype),
            k=normal(rng, (batch, time, kv_heads, key_size), dtype),
            v=normal(rng, (batch, time, kv_heads, value_size), dtype),
            log_gate=log_gate,
        )
        if not tied:
            arrays["write"] = normal(rng, gates, dtype)
        if gaps:
            arrays["mark"] = normal(rng, (batch, time, 1), dtype)
        return arrays

    def state(rng, batch, dtype):
        return slots_op.SlotState(
            normal(rng, (batch, kv_heads, slots, key_size), dtype),
            normal(rng, (batch, kv_heads, slots, value_size), dtype),
            jnp.ones((batch,), jnp.int32),
            jnp.ones((batch,), bool),
        )

    return Subject(
        name=f"gated_slots(heads={heads}/{kv_heads}, strength={strength})",
        apply=apply,
        inputs=inputs,
        state=state,
        extremes={
            "log-gate -150": lambda x: dict(x, log_gate=jnp.full_like(x["log_gate"], -150)),
            "gate 1": lambda x: dict(x, log_gate=jnp.zeros_like(x["log_gate"])),
            "-150 and 0 in turn": lambda x: dict(x, log_gate=alternate(x["log_gate"])),
            "large logits": lambda x: dict(x, q=x["q"] * 1e3, k=x["k"] * 1e3),
        },
    )


def alternate(x_BTGM):
    even_T = (jnp.arange(x_BTGM.shape[1]) % 2 == 0)[None, :, None, None]
    return jnp.where(even_T, -150.0, 0.0) + 0 * x_BTGM


def draw(rng) -> Subject:
    """Heads, sizes, gates and conventions drawn afresh."""
    kv_heads = int(rng.integers(1, 4))
    return slots_subject(
        heads=kv_heads * int(rng.integers(1, 4)),
        kv_heads=kv_heads,
        slots=int(rng.choice([1, 3, 8, 32])),
        key_size=int(rng.choice([3, 8, 16])),
        value_size=int(rng.choice([1, 8])),
        strength=float(rng.choice([0.01, 1.0, 20.0])),
        tied=bool(rng.integers(0, 2)),
        mask_empty=bool(rng.integers(0, 2)),
        gaps=bool(rng.integers(0, 2)),
        scale=[None, 1.0][rng.integers(0, 2)],
    )


SUBJECTS = {"gated_slots": draw}
FAULTS = {}
