"""The causal convolution as a subject of the laws, and the faults that they must catch."""

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas import causal_conv as conv
from kernels_pallas.causal_conv import chunked
from kernels_pallas.testing import Subject, assert_close, draw_segment_ids, normal
from subjects.faults import Fault, boundary_dropped, forms


def conv_subject(channels=5, width=4, bias=True, activation=None) -> Subject:
    def apply(inputs, params, segment_ids, state, impl):
        y, final = conv.causal_conv(
            inputs["x"],
            params["kernel"],
            params.get("bias"),
            segment_ids=segment_ids,
            initial_state=state,
            return_state=True,
            activation=activation,
            impl=impl,
        )
        return dict(y=y), final

    def params(rng, dtype):
        kernel = dict(kernel=normal(rng, (width, channels), dtype))
        return dict(kernel, bias=normal(rng, (channels,), dtype)) if bias else kernel

    return Subject(
        name=f"causal_conv(width={width}, activation={activation})",
        apply=apply,
        inputs=lambda rng, batch, time, dtype: dict(x=normal(rng, (batch, time, channels), dtype)),
        params=params,
        state=lambda rng, batch, dtype: conv.ConvState(
            normal(rng, (batch, width - 1, channels), dtype),
            jnp.ones((batch, width - 1), jnp.int32),
        ),
        extremes={"large": lambda x: {name: array * 1e6 for name, array in x.items()}},
    )


def draw(rng) -> Subject:
    """Channels, width, bias and activation drawn at random."""
    channels, width = (int(rng.integers(1, 9)) for _ in range(2))
    bias, silu = (bool(rng.integers(0, 2)) for _ in range(2))
    return conv_subject(channels, width, bias, "silu" if silu else None)


def check_silu_by_hand(rng, time, packed, with_state, impl, dtype, tolerance) -> None:
    """silu of the convolution, and the gradients of x, the state, the filter and the bias, equal those of
    loops in float64."""
    batch, channels, width = 2, 3, 4
    ids = draw_segment_ids(rng, batch, time) if packed else None
    x, kernel, bias, dy = (
        normal(rng, shape, dtype)
        for shape in [
            (batch, time, channels),
            (width, channels),
            (channels,),
            (batch, time, channels),
        ]
    )
    state = conv_subject(channels, width).state(rng, batch, dtype)
    if not with_state:
        state = conv.empty_state(batch, width, channels, dtype)

    def run(x, past, kernel, bias):
        initial = state._replace(x_BSD=past)
        options = dict(segment_ids=ids, initial_state=initial, activation="silu", impl=impl)
        return conv.causal_conv(x, kernel, bias, **options)

    y, pull = jax.vjp(run, x, state.x_BSD, kernel, bias)
    now = np.ones((batch, time), np.int32) if ids is None else np.asarray(ids)
    arrays = (np.asarray(a, np.float64) for a in (x, state.x_BSD, kernel, bias, dy))
    want = by_hand(*arrays, np.concatenate([np.asarray(state.segment_ids_BS), now], axis=1))
    assert_close(f"causal_conv, silu: {impl} = by hand", (y, *pull(dy)), want, tolerance)


def by_hand(x, past, kernel, bias, dy, ids):
    """(y, dx, gradient of the past inputs, dkernel, dbias) of silu(conv(x)), token by token."""
    slots, all_x = len(kernel) - 1, np.concatenate([past, x], axis=1)
    y, dx, dkernel, dbias = np.zeros_like(x), np.zeros_like(all_x), 0 * kernel, 0 * bias
    for row, t in np.ndindex(x.shape[:2]):
        if ids[row, slots + t] == 0:
            continue
        places = [slots + t]  # of the tokens that taps reach, newest first
        while len(places) <= slots and ids[row, places[-1] - 1] == ids[row, places[0]]:
            places.append(places[-1] - 1)
        z = bias + sum(k * all_x[row, s] for k, s in zip(kernel, places))
        sigmoid = 1 / (1 + np.exp(-z))
        y[row, t] = z * sigmoid
        dz = dy[row, t] * (sigmoid + z * sigmoid * (1 - sigmoid))
        dbias += dz
        for tap, s in enumerate(places):
            dkernel[tap] += dz * all_x[row, s]
            dx[row, s] += dz * kernel[tap]
    return y, dx[:, slots:], dx[:, :slots], dkernel, dbias


SUBJECTS = {"causal_conv": draw}
FAULTS = {
    "boundary dropped": boundary_dropped(conv_subject()),
    "gradient not of the activation": Fault(
        chunked, "of_sums", lambda sums, dy, activation: dy, forms(conv_subject(activation="silu"))
    ),
}
