"""The linear recurrence as a subject of the laws, and the faults that they must catch."""

import dataclasses

import jax.numpy as jnp

from kernels_pallas import linear_recurrence as recurrence
from kernels_pallas.linear_recurrence import chunked, gates
from kernels_pallas.testing import Subject, normal
from subjects.faults import (
    Fault,
    boundary_dropped,
    finite,
    forms,
    not_contained,
    split,
    without_state,
)


def recurrence_subject(channels=5) -> Subject:
    def apply(inputs, params, segment_ids, state, impl):
        h, final = recurrence.linear_recurrence(
            inputs["a"],
            inputs["b"],
            segment_ids=segment_ids,
            initial_state=state,
            return_state=True,
            impl=impl,
        )
        return dict(h=h), final

    def inputs(rng, batch, time, dtype):
        shape = (batch, time, channels)
        # Gates in [0, 1], one in ten exactly 0 and one in ten exactly 1.
        a = jnp.clip(jnp.asarray(rng.uniform(-0.125, 1.125, shape), dtype), 0, 1)
        return dict(a=a, b=normal(rng, shape, dtype))

    return Subject(
        name="linear_recurrence",
        apply=apply,
        inputs=inputs,
        state=lambda rng, batch, dtype: recurrence.RecurrenceState(
            normal(rng, (batch, channels), dtype), jnp.ones((batch,), jnp.int32)
        ),
        extremes={
            "log-gate -150": lambda x: dict(x, a=jnp.exp(jnp.full_like(x["a"], -150))),
            "gate 0": lambda x: dict(x, a=jnp.zeros_like(x["a"])),
            "gate 1": lambda x: dict(x, a=jnp.ones_like(x["a"])),
        },
    )


def gated_subject(channels=5) -> Subject:
    """The recurrence with RG-LRU's gate, from log a."""

    def apply(inputs, params, segment_ids, state, impl):
        h, final = recurrence.gated_recurrence(
            inputs["log_a"],
            inputs["x"],
            segment_ids=segment_ids,
            initial_state=state,
            return_state=True,
            impl=impl,
        )
        return dict(h=h), final

    def inputs(rng, batch, time, dtype):
        shape = (batch, time, channels)
        # Over some orders of magnitude, one in ten exactly 0 (a is 1) and one in ten -150.
        log_a, pick = -jnp.exp(3 * normal(rng, shape, dtype) - 3), jnp.asarray(rng.random(shape))
        log_a = jnp.where(pick < 0.1, 0, jnp.where(pick > 0.9, -150, log_a)).astype(dtype)
        return dict(log_a=log_a, x=normal(rng, shape, dtype))

    def gates(value):
        return lambda x: dict(x, log_a=jnp.full_like(x["log_a"], value))

    extremes = {"log-gate -150": gates(-150), "gate 0": gates(-jnp.inf), "gate 1": gates(0)}
    return dataclasses.replace(
        recurrence_subject(channels),
        name="gated_recurrence",
        apply=apply,
        inputs=inputs,
        extremes=extremes,
    )


SUBJECTS = {
    "linear_recurrence": lambda rng: recurrence_subject(int(rng.integers(1, 9))),
    "gated_recurrence": lambda rng: gated_subject(int(rng.integers(1, 9))),
}


def decays_after_input(gated, a_BTD, b_BTD, call, original=chunked.recurrence):
    """h_t = a_t (h_{t-1} + b_t)."""
    return original(gated, a_BTD, a_BTD * b_BTD, call)


def divides_by_decay_products(gated, a_BTD, b_BTD, call):
    a_BTD, b_BTD = gates.prepare(gated, a_BTD, b_BTD, call)
    product_BTD = jnp.cumprod(a_BTD, axis=1)
    return product_BTD * (call.state_B[:, None] + jnp.cumsum(b_BTD / product_BTD, axis=1))


def state_dropped(gated, a_BTD, b_BTD, call, original=chunked.recurrence):
    return original(gated, a_BTD, b_BTD, without_state(call))


recurrent = recurrence_subject()
FAULTS = {
    "boundary dropped": boundary_dropped(recurrent),
    "NaN spreads": not_contained(recurrent),
    "state dropped": Fault(recurrence._FORMS, "chunked", state_dropped, split(recurrent)),
    "decay order": Fault(recurrence._FORMS, "chunked", decays_after_input, forms(recurrent)),
    "division by decays": Fault(
        recurrence._FORMS, "chunked", divides_by_decay_products, finite(recurrent)
    ),
}
