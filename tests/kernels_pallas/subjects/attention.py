"""Softmax attention as a subject of the laws, and the faults that they must catch."""

import jax
import jax.numpy as jnp

from kernels_pallas import attention as attn
from kernels_pallas.attention import chunked, forget
from kernels_pallas.testing import Subject, normal
from subjects.faults import Fault, boundary_dropped, causal, forms, not_contained, split


def attention_subject(
    heads=4,
    kv_heads=2,
    key_size=8,
    value_size=6,
    window=None,
    sinks=False,
    soft_cap=None,
    slots=5,
    decay=None,
) -> Subject:
    """`decay` is the mean of -log of the forget gates; None is no gates."""

    def apply(inputs, params, segment_ids, state, impl):
        out, lse, final = attn.attention(
            inputs["q"],
            inputs["k"],
            inputs["v"],
            segment_ids=segment_ids,
            window=window,
            soft_cap=soft_cap,
            sinks_H=params.get("sinks"),
            log_forget_BTH=inputs.get("log_forget"),
            initial_state=state,
            return_state=True,
            impl=impl,
        )
        if segment_ids is not None:
            lse = jnp.where((segment_ids == 0)[..., None], 0, lse)
        return dict(out=out, lse=lse), final

    def gates(rng, batch, time, dtype):
        return jnp.asarray(-decay * rng.exponential(size=(batch, time, heads)), dtype)

    def inputs(rng, batch, time, dtype):
        more = {} if decay is None else dict(log_forget=gates(rng, batch, time, dtype))
        return more | dict(
            q=normal(rng, (batch, time, heads, key_size), dtype),
            k=normal(rng, (batch, time, kv_heads, key_size), dtype),
            v=normal(rng, (batch, time, kv_heads, value_size), dtype),
        )

    def state(rng, batch, dtype):
        return attn.AttentionState(
            normal(rng, (batch, slots, kv_heads, key_size), dtype),
            normal(rng, (batch, slots, kv_heads, value_size), dtype),
            jnp.ones((batch, slots), jnp.int32),
            None if decay is None else gates(rng, batch, slots, dtype),
        )

    return Subject(
        name=f"attention(window={window}, heads={heads}/{kv_heads}, decay={decay})",
        apply=apply,
        inputs=inputs,
        params=lambda rng, dtype: dict(sinks=normal(rng, (heads,), dtype)) if sinks else {},
        state=state,
        extremes={
            "large logits": lambda x: dict(x, q=x["q"] * 1e3, k=x["k"] * 1e3),
            "zero": lambda x: {name: array * 0 for name, array in x.items()},
            **({} if decay is None else FORGETFUL),
        },
    )


FORGETFUL = {
    "strong decay": lambda x: dict(x, log_forget=x["log_forget"] * 0 - 150),
    "gates of 0": lambda x: dict(x, log_forget=jnp.full_like(x["log_forget"], -jnp.inf)),
    "some gates of 0": lambda x: dict(
        x, log_forget=jnp.where(x["log_forget"] < -0.5, -jnp.inf, x["log_forget"])
    ),
}


def draw(rng) -> Subject:
    """Heads, sizes, window, sinks, cap and forget gates drawn at random."""
    kv_heads = int(rng.integers(1, 4))
    return attention_subject(
        heads=kv_heads * int(rng.integers(1, 4)),
        kv_heads=kv_heads,
        key_size=int(rng.choice([3, 8, 32])),
        value_size=int(rng.choice([1, 8])),
        window=[None, 1, 2, 7, 40, 500][rng.integers(0, 6)],
        sinks=bool(rng.integers(0, 2)),
        soft_cap=[None, 5.0][rng.integers(0, 2)],
        slots=int(rng.integers(1, 9)),
        decay=[None, 0.02, 1.0][rng.integers(0, 3)],
    )


SUBJECTS = {"attention": draw}


def window_one_longer(*args, window, original=chunked.attention, **kwargs):
    return original(*args, window=window + 1, **kwargs)


def lse_gradient_ignored(static, residuals, cotangents, original=chunked._backward):
    return original(static, residuals, (cotangents[0], jnp.zeros_like(cotangents[1])))


def sees_the_future(self, start_NBC, original=chunked._Part.mask):
    self.key -= 1
    return original(self, start_NBC)


def slots_dropped(state, slots):
    return jax.tree.map(jnp.zeros_like, state)


def key_forgets_itself(log_forget_BSH, ids_BS, original=forget.cumulative):
    """The gate of the key's own token counts, and the query's does not."""
    return original(jnp.roll(log_forget_BSH, 1, axis=1), ids_BS)


def gate_gradient_not_summed(starts_BS, cotangents):
    return jnp.where(starts_BS[..., None], 0, cotangents[0]), None


def gates_dropped(old, new, original=attn._after):
    dropped = jax.tree.map(jnp.zeros_like, old.log_forget_BSH)
    return original(old._replace(log_forget_BSH=dropped), new)


windowed, full = attention_subject(window=4, sinks=True), attention_subject()
forgetful = attention_subject(window=7, sinks=True, soft_cap=2.0, decay=0.3)
FAULTS = {
    "boundary dropped": boundary_dropped(full),
    "NaN spreads": not_contained(full),
    "window off by one": Fault(attn._FORMS, "chunked", window_one_longer, forms(windowed)),
    "dlse ignored": Fault(chunked._attention, "bwd", lse_gradient_ignored, forms(windowed)),
    "one future key": Fault(chunked._Part, "mask", sees_the_future, causal(full)),
    "state dropped": Fault(attn, "_last_slots", slots_dropped, split(windowed)),
    "key forgets itself": Fault(forget, "cumulative", key_forgets_itself, forms(forgetful)),
    "gate's gradient not summed": Fault(
        forget._sums, "bwd", gate_gradient_not_summed, forms(forgetful)
    ),
    "gates of the state dropped": Fault(attn, "_after", gates_dropped, split(forgetful)),
}
