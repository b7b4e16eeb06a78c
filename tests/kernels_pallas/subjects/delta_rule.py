"""The delta rule wrapped for the laws, and the faults they must catch."""

import jax.numpy as jnp

from kernels_pallas import delta_rule as delta
from kernels_pallas.delta_rule import chunked, scores
from kernels_pallas.testing import Subject, normal
from subjects.faults import Fault, boundary_dropped, finite, forms, packed, split

GATES = ("none", "head", "channel")


def delta_subject(
    gate="head", kv_heads=2, repeats=2, key_size=8, value_size=6, longest_key=1.0, decay=1.0
) -> Subject:
    """`longest_key` bounds |k|; beta lies in [0, 2 / longest_key^2], so that S stays bounded.
    Log decays are minus `decay` times numbers from 0 to about 150, small ones mostly."""
    heads = kv_heads * repeats

    def apply(inputs, params, segment_ids, state, impl):
        o, final = delta.delta_rule(
            inputs["q"], inputs["k"], inputs["v"], inputs["beta"], inputs.get("log_decay"),
            segment_ids=segment_ids, initial_state=state, return_state=True, impl=impl,
        )  # fmt: skip
        return dict(o=o), final

    def inputs(rng, batch, time, dtype):
        k = rng.standard_normal((batch, time, kv_heads, key_size))
        k *= longest_key / jnp.linalg.norm(k, axis=-1, keepdims=True)
        k *= rng.uniform(0.5, 1, (batch, time, kv_heads, 1))
        drawn = dict(
            q=normal(rng, (batch, time, kv_heads, key_size), dtype),
            k=jnp.asarray(k, dtype),
            v=normal(rng, (batch, time, heads, value_size), dtype),
            beta=jnp.asarray(rng.uniform(0, 2 / longest_key**2, (batch, time, heads)), dtype),
        )
        if gate == "none":
            return drawn
        shape = (batch, time, heads) + ((key_size,) if gate == "channel" else ())
        # One in ten exactly 1 and one in ten very strong, beside weak ones.
        log_decay = -decay * rng.exponential(0.1, shape)
        kind = rng.random(shape)
        log_decay = jnp.where(kind < 0.1, 0, jnp.where(kind > 0.9, -150 * decay, log_decay))
        return dict(drawn, log_decay=jnp.asarray(log_decay, dtype))

    def gates(value):
        def extreme(x):
            return dict(x, log_decay=jnp.full_like(x["log_decay"], value))

        return extreme

    extremes = {
        "beta 0": lambda x: dict(x, beta=x["beta"] * 0),
        "beta 2": lambda x: dict(x, beta=jnp.full_like(x["beta"], 2 / longest_key**2)),
        "zero": lambda x: {name: array * 0 for name, array in x.items()},
        "large values": lambda x: dict(x, v=x["v"] * 1e6, q=x["q"] * 1e6),
    }
    if gate != "none":
        extremes |= {"log-gate -150": gates(-150), "gate 1": gates(0), "gate 0": gates(-jnp.inf)}
    return Subject(
        name=f"delta_rule(gate={gate}, heads={heads}/{kv_heads})",
        apply=apply,
        inputs=inputs,
        state=lambda rng, batch, dtype: delta.DeltaRuleState(
            normal(rng, (batch, heads, key_size, value_size), dtype),
            jnp.ones((batch,), jnp.int32),
        ),
        extremes=extremes,
    )


def draw(rng) -> Subject:
    """Gate, heads, sizes, length of keys and strength of decays drawn afresh."""
    return delta_subject(
        gate=GATES[rng.integers(0, len(GATES))],
        kv_heads=int(rng.integers(1, 3)),
        repeats=int(rng.integers(1, 4)),
        key_size=int(rng.choice([1, 3, 8, 32])),
        value_size=int(rng.choice([1, 5, 16])),
        longest_key=float(rng.choice([0.3, 1.0, 3.0])),
        decay=float(rng.choice([0.01, 1.0, 10.0])),
    )


SUBJECTS = {"delta_rule": draw}
FAULTS = {}
