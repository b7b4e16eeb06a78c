"""The causal convolution as a subject of the laws, and the faults that they must catch."""

import jax.numpy as jnp

from kernels_pallas import causal_conv as conv
from kernels_pallas.testing import Subject, normal
from subjects.faults import boundary_dropped


def conv_subject(channels=5, width=4, bias=True) -> Subject:
    def apply(inputs, params, segment_ids, state, impl):
        y, final = conv.causal_conv(
            inputs["x"],
            params["kernel"],
            params.get("bias"),
            segment_ids=segment_ids,
            initial_state=state,
            return_state=True,
            impl=impl,
        )
        return dict(y=y), final

    def params(rng, dtype):
        kernel = dict(kernel=normal(rng, (width, channels), dtype))
        return dict(kernel, bias=normal(rng, (channels,), dtype)) if bias else kernel

    return Subject(
        name=f"causal_conv(width={width})",
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
    """Channels, width and bias drawn at random."""
    return conv_subject(int(rng.integers(1, 9)), int(rng.integers(1, 9)), bool(rng.integers(0, 2)))


SUBJECTS = {"causal_conv": draw}
FAULTS = {"boundary dropped": boundary_dropped(conv_subject())}
