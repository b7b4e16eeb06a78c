"""The delta rule as a subject of the laws, and the faults that they must catch."""

import jax.numpy as jnp
import numpy as np

from kernels_pallas import delta_rule as delta
from kernels_pallas import testing
from kernels_pallas.delta_rule import chunked, scores
from kernels_pallas.testing import Subject, normal
from subjects.faults import (
    Fault,
    boundary_dropped,
    finite,
    forms,
    not_contained,
    packed,
    rng,
    split,
    without_state,
)

GATES = ("none", "head", "channel")


def delta_subject(
    gate="head",
    kv_heads=2,
    repeats=2,
    key_size=8,
    value_size=6,
    longest_key=1.0,
    decay=1.0,
    erase=False,
    unit_eps=None,
) -> Subject:
    """`longest_key` bounds |k|; beta lies in [0, 2 / longest_key^2], so that S stays bounded. With
    `unit_eps` the op gives keys length 1.
    Log decays are -`decay` times numbers from 0 to about 150, most of them small. With `erase` there
    is an erase key, k times a gate per channel in [0, 1], and beta is at most half of that."""
    heads = kv_heads * repeats
    largest_beta = 2 / longest_key**2 if unit_eps is None else 2.0

    def apply(inputs, params, segment_ids, state, impl):
        o, final = delta.delta_rule(
            inputs["q"],
            inputs["k"],
            inputs["v"],
            inputs["beta"],
            inputs.get("log_decay"),
            erase_BTGK=inputs.get("erase"),
            segment_ids=segment_ids,
            unit_eps=unit_eps,
            initial_state=state,
            return_state=True,
            impl=impl,
        )
        return dict(o=o), final

    def inputs(rng, batch, time, dtype):
        k = rng.standard_normal((batch, time, kv_heads, key_size))
        k *= longest_key / np.linalg.norm(k, axis=-1, keepdims=True)
        k *= rng.uniform(0.5, 1, (batch, time, kv_heads, 1))
        drawn = dict(
            q=normal(rng, (batch, time, kv_heads, key_size), dtype),
            k=jnp.asarray(k, dtype),
            v=normal(rng, (batch, time, heads, value_size), dtype),
            beta=jnp.asarray(rng.uniform(0, largest_beta, (batch, time, heads)), dtype),
        )
        if erase:
            gates = rng.uniform(0, 1, k.shape)
            drawn |= dict(erase=jnp.asarray(k * gates, dtype), beta=drawn["beta"] / 2)
        if gate == "none":
            return drawn
        shape = (batch, time, heads) + ((key_size,) if gate == "channel" else ())
        # One in ten exactly 0 and one in ten very strong, the others weak.
        log_decay = -decay * rng.exponential(0.1, shape)
        kind = rng.random(shape)
        log_decay = np.where(kind < 0.1, 0, np.where(kind > 0.9, -150 * decay, log_decay))
        return dict(drawn, log_decay=jnp.asarray(log_decay, dtype))

    def gates(value):
        def extreme(x):
            return dict(x, log_decay=jnp.full_like(x["log_decay"], value))

        return extreme

    if erase:
        extreme_erasures = {
            "erase 0": lambda x: dict(x, erase=x["erase"] * 0),
            "erase k": lambda x: dict(x, erase=x["k"]),
        }
    else:
        extreme_erasures = {}
    extremes = extreme_erasures | {
        "beta 0": lambda x: dict(x, beta=x["beta"] * 0),
        "beta 2": lambda x: dict(x, beta=jnp.full_like(x["beta"], largest_beta)),
        "zero": lambda x: {name: array * 0 for name, array in x.items()},
        "large values": lambda x: dict(x, v=x["v"] * 1e6, q=x["q"] * 1e6),
    }
    if gate != "none":
        extremes |= {"log-gate -150": gates(-150), "gate 1": gates(0), "gate 0": gates(-jnp.inf)}
    return Subject(
        name=f"delta_rule(gate={gate}, heads={heads}/{kv_heads}{', erase' * erase}"
        + (")" if unit_eps is None else f", unit_eps={unit_eps})"),
        apply=apply,
        inputs=inputs,
        state=lambda rng, batch, dtype: delta.DeltaRuleState(
            normal(rng, (batch, heads, key_size, value_size), dtype), jnp.ones((batch,), jnp.int32)
        ),
        extremes=extremes,
    )


def draw(rng) -> Subject:
    """Gate, heads, sizes, length of keys and strength of decays drawn at random."""
    erase = bool(rng.random() < 0.5)
    return delta_subject(
        gate=GATES[rng.integers(0, len(GATES))],
        kv_heads=int(rng.integers(1, 3)),
        repeats=int(rng.integers(1, 4)),
        key_size=int(rng.choice([1, 3, 8, 32])),
        value_size=int(rng.choice([1, 5, 16])),
        longest_key=float(rng.choice([0.3, 1.0, 3.0])),
        decay=float(rng.choice([0.01, 1.0, 10.0])),
        erase=erase,
        unit_eps=None if erase else (None, 1e-6, 0.1)[rng.integers(0, 3)],
    )


SUBJECTS = {"delta_rule": draw}


def decays_after_error(q, k, v, beta, log_decay, erase, call, original=chunked.delta_rule):
    """The decay comes after S <- S + beta k (v - S^T k)^T."""
    log_decay = jnp.pad(log_decay[:, 1:], ((0, 0), (0, 1), (0, 0)))
    return original(q, k, v, beta, log_decay, erase, call)


def erases_at_the_written_key(q, k, v, beta, log_decay, erase, call, original=chunked.delta_rule):
    return original(q, k, v, beta, log_decay, jnp.where(erase == 0, 0, k), call)


def writes_at_the_erase_key(q, k, v, beta, log_decay, erase, call, original=chunked.delta_rule):
    """S <- S + beta e (v - S^T k)^T."""
    return original(q, erase, v, beta, log_decay, k, call)


def state_dropped(*inputs_and_call, original=chunked.delta_rule):
    *inputs, call = inputs_and_call
    return original(*inputs, without_state(call))


def key_heads_interleaved(q, k, v, beta, log_decay, erase, call, original=chunked.delta_rule):
    """Value head h reads key head h % G instead of h // R."""
    kv_heads = k.shape[2]
    interleaved = np.arange(v.shape[2]).reshape(-1, kv_heads).T.reshape(-1)
    o, s = original(q, k, v[:, :, interleaved], beta[:, :, interleaved], log_decay, erase, call)
    back = np.argsort(interleaved)
    return o[:, :, back], s[:, back]


def documents(original=chunked._documents, **masks):
    """Sets some of the masks to True everywhere."""

    def faulty(resets_BT, length):
        right = original(resets_BT, length)
        return right._replace(**{name: jnp.ones_like(getattr(right, name)) for name in masks})

    return faulty


def divides_by_decays(q, k, log_decay, precision, erase):
    sums = jnp.cumsum(log_decay, axis=-2)
    k_out = jnp.exp(-sums) * k
    keys, queries = scores.grams_of(jnp.exp(sums) * q, k_out, None, precision)
    return keys, queries, jnp.exp(sums), jnp.exp(sums[..., -1:, :] - sums)


def inverse_constant(*arguments, original=chunked._of_system):
    system, *rest = original(*arguments)
    return system._replace(a=jnp.zeros_like(system.a)), *rest


def across_chunks(subject):
    """Documents end within each of two chunks of 64, and one continues across them."""
    return lambda: testing.check_packed(subject, rng(), [60, 9, 3])


plain, gated, channels = (delta_subject(gate) for gate in GATES)
erasing = delta_subject("channel", erase=True)
FAULTS = {
    "boundary dropped": boundary_dropped(gated),
    "NaN spreads": not_contained(gated),
    "boundary in a chunk dropped": Fault(
        chunked, "_documents", documents(same=True), packed(channels)
    ),
    "entering state crosses a boundary": Fault(
        chunked, "_documents", documents(entered=True), across_chunks(plain)
    ),
    "leaving state crosses a boundary": Fault(
        chunked, "_documents", documents(left=True), across_chunks(plain)
    ),
    "state dropped": Fault(delta._FORMS, "chunked", state_dropped, split(gated)),
    "decay after the error": Fault(delta._FORMS, "chunked", decays_after_error, forms(gated)),
    "erase key not read": Fault(delta._FORMS, "chunked", erases_at_the_written_key, forms(erasing)),
    "erase and written key swapped": Fault(
        delta._FORMS, "chunked", writes_at_the_erase_key, forms(erasing)
    ),
    "key heads interleaved": Fault(delta._FORMS, "chunked", key_heads_interleaved, forms(plain)),
    "exp(-cumsum)": Fault(scores, "_per_channel", divides_by_decays, finite(channels)),
    "inverse taken for constant": Fault(chunked, "_of_system", inverse_constant, forms(plain)),
}
