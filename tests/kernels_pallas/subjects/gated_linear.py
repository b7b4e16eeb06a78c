"""Gated linear attention as a subject of the laws, and the faults that they must catch."""

import jax.numpy as jnp

from kernels_pallas import gated_linear as gated
from kernels_pallas.gated_linear import channel, chunked, scalar
from kernels_pallas.testing import Subject, normal
from subjects.faults import (
    Fault,
    boundary_dropped,
    causal,
    finite,
    forms,
    not_contained,
    packed,
    split,
    without_state,
)


def gated_subject(
    groups=2,
    ratio=2,
    key_size=5,
    value_size=3,
    decay="token",
    strength=1.0,
    scale=None,
    value_dtype=None,
) -> Subject:
    """`decay`: "head" (fixed), "token" (per head and token) or "channel" (of the key).

    Values have the dtype of the other inputs unless there is a `value_dtype`.
    """
    heads = groups * ratio
    decay_shape = dict(head=(), token=(heads,), channel=(heads, key_size))[decay]

    def apply(inputs, params, segment_ids, state, impl):
        o, final = gated.gated_linear(
            inputs["q"],
            inputs["k"],
            inputs["v"],
            params.get("decay", inputs.get("decay")),
            segment_ids=segment_ids,
            scale=scale,
            initial_state=state,
            return_state=True,
            impl=impl,
        )
        return dict(o=o), final

    def log_decay(rng, shape, dtype):
        """Log-normal over some orders of magnitude, one in ten exactly 0, one in twenty -150."""
        drawn = -strength * jnp.exp(2 * normal(rng, shape, dtype))
        pick = jnp.asarray(rng.random(shape))
        return jnp.where(pick < 0.1, 0, jnp.where(pick > 0.95, -150, drawn)).astype(dtype)

    def inputs(rng, batch, time, dtype):
        drawn = dict(
            q=normal(rng, (batch, time, groups, key_size), dtype),
            k=normal(rng, (batch, time, groups, key_size), dtype),
            v=normal(rng, (batch, time, heads, value_size), value_dtype or dtype),
        )
        if decay != "head":
            drawn["decay"] = log_decay(rng, (batch, time, *decay_shape), dtype)
        return drawn

    def with_decay(value):
        def extreme(x):
            return dict(x, decay=jnp.full_like(x["decay"], value)) if "decay" in x else x

        return extreme

    return Subject(
        name=f"gated_linear({decay}, {groups} of {heads} heads, K={key_size}, V={value_size})",
        apply=apply,
        inputs=inputs,
        params=lambda rng, dtype: (
            dict(decay=log_decay(rng, (heads,), dtype)) if decay == "head" else {}
        ),
        state=lambda rng, batch, dtype: gated.GatedLinearState(
            normal(rng, (batch, heads, key_size, value_size), dtype), jnp.ones((batch,), jnp.int32)
        ),
        extremes={
            "log-gate -150": with_decay(-150),
            "log-gate -inf": with_decay(-jnp.inf),
            "gate 1": with_decay(0),
            "large": lambda x: dict(x, q=x["q"] * 1e3, k=x["k"] * 1e3),
        },
    )


def draw(rng) -> Subject:
    """Heads, groups, sizes, kind and strength of the decay drawn at random."""
    return gated_subject(
        groups=int(rng.integers(1, 4)),
        ratio=int(rng.integers(1, 4)),
        key_size=int(rng.choice([1, 3, 8, 32])),
        value_size=int(rng.choice([1, 7, 16])),
        decay=["head", "token", "channel"][rng.integers(0, 3)],
        strength=float(10.0 ** rng.integers(-3, 2)),
        scale=[None, 0.25][rng.integers(0, 2)],
    )


SUBJECTS = {"gated_linear": draw}


def state_dropped(q, k, v, log_decay, call, original=chunked.gated_linear):
    return original(q, k, v, log_decay, without_state(call))


def decays_after_input(q, k, v, g_BTH, call, original=chunked.gated_linear):
    """S_t = decay_t (S_{t-1} + k_t v_t^T)."""
    return original(q, k, v * jnp.exp(g_BTH)[..., None], g_BTH, call)


def divides_by_decays(q, k, v, g_BTHK, call, original=chunked.gated_linear):
    """(q e^G) . (k e^-G) over the whole sequence, as if no sum were ever large."""
    sum_BTHK = jnp.cumsum(g_BTHK, axis=1)
    q, k = q * jnp.exp(sum_BTHK), k * jnp.exp(-sum_BTHK)
    return original(q, k, v, jnp.zeros_like(g_BTHK), call)


def state_not_decayed(keep_NB, added_NB, s_B, original=scalar.enter):
    return original(jnp.where(keep_NB > 0, 1, keep_NB), added_NB, s_B)


def boundaries_inside_chunks_dropped(chunks, *arguments, original=channel.attend):
    return original(chunks._replace(number_NBC=jnp.zeros_like(chunks.number_NBC)), *arguments)


def sees_the_future(q, k, g, precision, original=channel.pair_weights):
    weights, since, until = original(q, k, g, precision)
    return weights + jnp.swapaxes(weights, -1, -2), since, until


by_token = gated_subject()
by_channel = gated_subject(ratio=1, decay="channel")
FAULTS = {
    "boundary dropped": boundary_dropped(by_token),
    "NaN spreads": not_contained(by_token),
    "state dropped": Fault(gated._FORMS, "chunked", state_dropped, split(by_channel)),
    "decay order": Fault(gated._FORMS, "chunked", decays_after_input, forms(by_token)),
    "division by decays": Fault(gated._FORMS, "chunked", divides_by_decays, finite(by_channel)),
    "state not decayed": Fault(scalar, "enter", state_not_decayed, forms(by_token, time=130)),
    "boundary inside a chunk dropped": Fault(
        channel, "attend", boundaries_inside_chunks_dropped, packed(by_channel)
    ),
    "future keys": Fault(channel, "pair_weights", sees_the_future, causal(by_channel)),
}
