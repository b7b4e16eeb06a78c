"""The selective scan as a subject of the laws, and the faults that they must catch."""

import jax.numpy as jnp

from kernels_pallas import selective_scan as selective
from kernels_pallas.selective_scan import chunked
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


def selective_subject(channels=5, size=3, strength=1.0) -> Subject:
    """`strength`: of the rates."""

    def apply(inputs, params, segment_ids, state, impl):
        y, final = selective.selective_scan(
            inputs["x"],
            inputs["dt"],
            params["a"],
            inputs["b"],
            inputs["c"],
            segment_ids=segment_ids,
            initial_state=state,
            return_state=True,
            impl=impl,
        )
        return dict(y=y), final

    def inputs(rng, batch, time, dtype):
        shape = batch, time, channels
        # Steps over some orders of magnitude, one in ten exactly 0: the state stays as it is.
        dt = jnp.exp(2 * normal(rng, shape, dtype) - 2)
        return dict(
            x=normal(rng, shape, dtype),
            dt=jnp.where(jnp.asarray(rng.random(shape)) < 0.1, 0, dt).astype(dtype),
            b=normal(rng, (batch, time, size), dtype),
            c=normal(rng, (batch, time, size), dtype),
        )

    def with_steps(value):
        return lambda x: dict(x, dt=jnp.full_like(x["dt"], value))

    return Subject(
        name=f"selective_scan({channels} channels, state {size})",
        apply=apply,
        inputs=inputs,
        # One rate in ten is exactly 0: its state forgets nothing.
        params=lambda rng, dtype: dict(
            a=jnp.where(
                jnp.asarray(rng.random((channels, size))) < 0.1,
                0,
                -strength * jnp.exp(normal(rng, (channels, size), dtype)),
            ).astype(dtype)
        ),
        state=lambda rng, batch, dtype: selective.SelectiveScanState(
            normal(rng, (batch, channels, size), dtype), jnp.ones((batch,), jnp.int32)
        ),
        extremes={
            "decays of e^-150 and less": with_steps(1e4),
            "steps of 0": with_steps(0),
            "large": lambda x: dict(x, b=x["b"] * 1e3, c=x["c"] * 1e3),
        },
    )


def draw(rng) -> Subject:
    """Channels, sizes and strength of the decay drawn at random."""
    return selective_subject(
        channels=int(rng.integers(1, 9)),
        size=int(rng.choice([1, 3, 8, 16])),
        strength=float(10.0 ** rng.integers(-2, 2)),
    )


SUBJECTS = {"selective_scan": draw}


def state_dropped(x, dt, a, b, c, call, original=chunked.selective_scan):
    return original(x, dt, a, b, c, without_state(call))


def decays_after_input(x, dt, a, b, c, call, original=chunked.selective_scan):
    """h_t = exp(dt a) (h_{t-1} + dt b x), with the decay of the first rate."""
    return original(x * jnp.exp(dt * a[None, None, :, 0]), dt, a, b, c, call)


def one_rate_a_channel(x, dt, a, b, c, call, original=chunked.selective_scan):
    """Every entry of a channel's state decays like the first."""
    return original(x, dt, jnp.broadcast_to(a[:, :1], a.shape), b, c, call)


def divides_by_decays(x, dt, a, b, c, call):
    """h_t = e^G_t (h_0 + sum e^-G_s dt_s b_s x_s), as if no sum were ever large."""
    sum_BTDN = jnp.cumsum(dt, axis=1)[..., None] * a[None, None]
    added_BTDN = jnp.exp(-sum_BTDN) * (dt * x)[..., None] * b[:, :, None]
    h_BTDN = jnp.exp(sum_BTDN) * (call.state_B[:, None] + jnp.cumsum(added_BTDN, axis=1))
    return jnp.sum(h_BTDN * c[:, :, None], axis=-1), h_BTDN[:, -1]


selected = selective_subject()
FAULTS = {
    "boundary dropped": boundary_dropped(selected),
    "NaN spreads": not_contained(selected),
    "state dropped": Fault(selective._FORMS, "chunked", state_dropped, split(selected)),
    "decay order": Fault(selective._FORMS, "chunked", decays_after_input, forms(selected)),
    "one rate a channel": Fault(selective._FORMS, "chunked", one_rate_a_channel, forms(selected)),
    "division by decays": Fault(selective._FORMS, "chunked", divides_by_decays, finite(selected)),
}
