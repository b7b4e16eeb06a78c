"""Gated slots as a subject of the laws, and the faults that they must catch."""

import jax
import jax.numpy as jnp

from kernels_pallas import gated_slots as slots_op
from kernels_pallas.gated_slots import chunked, passes
from kernels_pallas.testing import Subject, normal
from subjects.faults import Fault, boundary_dropped, causal, finite, forms, not_contained, split


def slots_subject(
    heads=4,
    kv_heads=2,
    slots=6,
    key_size=8,
    value_size=5,
    strength=1.0,
    tied=True,
    mask_empty=False,
    gaps=False,
    scale=None,
) -> Subject:
    """`strength` scales the log-gates; `tied` writes 1 - gate; with `gaps` some tokens do not write."""

    def apply(inputs, params, segment_ids, state, impl):
        written_BT = inputs["mark"][..., 0] > 0 if gaps else None
        out, lse, final = slots_op.gated_slots(
            inputs["q"],
            inputs["k"],
            inputs["v"],
            inputs["log_gate"],
            inputs.get("write"),
            written_BT=written_BT,
            segment_ids=segment_ids,
            scale=scale,
            mask_empty=mask_empty,
            initial_state=state,
            return_state=True,
            impl=impl,
        )
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
    """Heads, sizes, gates and conventions drawn at random."""
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


def writes_before_decaying(
    q, k, v, log_gate, write, *rest, original=chunked.gated_slots, **options
):
    """slots_t = gate_t (slots_{t-1} + write_t k_t)."""
    return original(q, k, v, log_gate, jnp.exp(log_gate) * write, *rest, **options)


def state_dropped(*arguments, original=chunked.gated_slots, **options):
    *tokens, k_slots, v_slots = arguments
    return original(*tokens, jnp.zeros_like(k_slots), jnp.zeros_like(v_slots), **options)


def factors_over_the_sequence(
    q_BTGRK,
    k_BTGK,
    v_BTGV,
    log_gate_BTGM,
    write_BTGM,
    resets,
    k_slots,
    v_slots,
    *,
    scale,
    precision,
):
    """exp(b_t) exp(-b_j) for a decay from j to t: infinite times zero."""
    b_BTGM = jnp.cumsum(log_gate_BTGM, axis=1)
    causal_TS = jnp.tril(jnp.ones(2 * q_BTGRK.shape[1:2], bool))
    into_BSGM = jnp.exp(-b_BTGM) * write_BTGM
    dots = jnp.where(
        causal_TS[None, None, None], jnp.einsum("btgrk,bsgk->bgrts", q_BTGRK, k_BTGK), 0
    )
    logits = jnp.einsum("bgrts,bsgm,btgm->btgrm", dots, into_BSGM, jnp.exp(b_BTGM)) * scale
    out = jnp.einsum("btgrm,bsgm,bsgv->btgrv", jax.nn.softmax(logits), into_BSGM, v_BTGV)
    return out, jax.nn.logsumexp(logits, axis=-1), k_slots, v_slots


def lse_gradient_ignored(precision, residuals, cotangents, original=chunked._backward):
    dout, dlse, dlast = cotangents
    return original(precision, residuals, (dout, jnp.zeros_like(dlse), dlast))


def half_too_far(self, half, *arguments, original=passes._Level.__init__):
    """The right halves' products miss their first gate."""
    original(self, half, *arguments)
    self.prefix_JhM = jnp.roll(self.prefix_JhM, 1, axis=-2).at[..., 0, :].set(1)


def fill_not_carried(starts_BT, update_BT, written_B, original=slots_op.filled):
    return original(starts_BT, update_BT, jnp.zeros_like(written_B))


def next_token_written(q, k, v, log_gate, write, *rest, original=chunked.gated_slots, **options):
    k, v, log_gate, write = (
        jnp.concatenate([x[:, 1:], x[:, :1]], axis=1) for x in (k, v, log_gate, write)
    )
    return original(q, k, v, log_gate, write, *rest, **options)


plain, untied = slots_subject(), slots_subject(strength=20.0, tied=False)
masked = slots_subject(mask_empty=True, gaps=True)
FAULTS = {
    "boundary dropped": boundary_dropped(plain),
    "NaN spreads": not_contained(plain),
    "state dropped": Fault(slots_op._FORMS, "chunked", state_dropped, split(plain)),
    "decay order": Fault(slots_op._FORMS, "chunked", writes_before_decaying, forms(untied)),
    "exp(-cumsum)": Fault(slots_op._FORMS, "chunked", factors_over_the_sequence, finite(plain)),
    "dlse ignored": Fault(chunked._slots, "bwd", lse_gradient_ignored, forms(plain)),
    "a gate missed between halves": Fault(passes._Level, "__init__", half_too_far, forms(plain)),
    "emptiness not carried": Fault(slots_op, "filled", fill_not_carried, split(masked)),
    "one future token": Fault(slots_op._FORMS, "chunked", next_token_written, causal(plain)),
}
