"""The ops of this folder wrapped for the laws of `kernels_pallas.testing`."""

import jax.numpy as jnp
import numpy as np

from kernels_pallas import attention as attn
from kernels_pallas import causal_conv as conv
from kernels_pallas import linear_recurrence as recurrence
from kernels_pallas.testing import Subject, normal


def attention_subject(
    heads=4, kv_heads=2, key_size=8, value_size=6, window=None, sinks=False, soft_cap=None, slots=5
) -> Subject:
    def apply(inputs, params, segment_ids, state, impl):
        out, lse, final = attn.attention(
            inputs["q"], inputs["k"], inputs["v"], segment_ids=segment_ids, window=window,
            soft_cap=soft_cap, sinks_H=params.get("sinks"), initial_state=state,
            return_state=True, impl=impl,
        )  # fmt: skip
        if segment_ids is not None:
            lse = jnp.where((segment_ids == 0)[..., None], 0, lse)
        return dict(out=out, lse=lse), final

    def inputs(rng, batch, time, dtype):
        return dict(
            q=normal(rng, (batch, time, heads, key_size), dtype),
            k=normal(rng, (batch, time, kv_heads, key_size), dtype),
            v=normal(rng, (batch, time, kv_heads, value_size), dtype),
        )

    def state(rng, batch, dtype):
        return attn.AttentionState(
            normal(rng, (batch, slots, kv_heads, key_size), dtype),
            normal(rng, (batch, slots, kv_heads, value_size), dtype),
            jnp.ones((batch, slots), jnp.int32),
        )

    return Subject(
        name=f"attention(window={window}, heads={heads}/{kv_heads})",
        apply=apply,
        inputs=inputs,
        params=lambda rng, dtype: dict(sinks=normal(rng, (heads,), dtype)) if sinks else {},
        state=state,
        extremes={
            "large logits": lambda x: dict(x, q=x["q"] * 1e3, k=x["k"] * 1e3),
            "zero": lambda x: {name: array * 0 for name, array in x.items()},
        },
    )


def recurrence_subject(channels=5) -> Subject:
    def apply(inputs, params, segment_ids, state, impl):
        h, final = recurrence.linear_recurrence(
            inputs["a"], inputs["b"], segment_ids=segment_ids, initial_state=state,
            return_state=True, impl=impl,
        )  # fmt: skip
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


def conv_subject(channels=5, width=4, bias=True) -> Subject:
    def apply(inputs, params, segment_ids, state, impl):
        y, final = conv.causal_conv(
            inputs["x"], params["kernel"], params.get("bias"), segment_ids=segment_ids,
            initial_state=state, return_state=True, impl=impl,
        )  # fmt: skip
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


def a_boundary(ids) -> int:
    """A place where row 0 changes document (1 if it never does)."""
    changes = np.flatnonzero(np.diff(np.asarray(ids[0]))) + 1
    return int(changes[0]) if len(changes) else 1
