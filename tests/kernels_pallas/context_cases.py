"""Law 6 over time: each op with its rows split over a mesh axis equals the op on one device.

Run in a process with several devices; `test_context.py` does.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from subjects.attention import attention_subject
from subjects.block_sparse import block_sparse_subject
from subjects.causal_conv import conv_subject
from subjects.delta_rule import delta_subject
from subjects.gated_linear import gated_subject
from subjects.gated_slots import slots_subject
from subjects.linear_recurrence import gated_subject as rglru_subject
from subjects.linear_recurrence import recurrence_subject
from subjects.selective_scan import selective_subject

from kernels_pallas import (
    attention,
    block_sparse,
    causal_conv,
    context,
    delta_rule,
    gated_linear,
    gated_slots,
    selective_scan,
    testing,
)
from kernels_pallas import linear_recurrence as recurrence
from kernels_pallas.testing.contained import Planted

AXIS = "context"
SHARD, BATCH = jax.P(None, AXIS), 6


@dataclasses.dataclass(frozen=True)
class Case:
    """`call(op, inputs, params, **common) -> (outputs, state or None)` for the op on one device and for
    the op of the same name in `context`; `subject` draws their inputs."""

    subject: testing.Subject
    call: Callable
    single: Callable
    sharded: Callable
    stateful: bool = True


def with_state(result) -> tuple:
    """(output, state or None) of an op that returns only the output if no state is requested."""
    return result if isinstance(result, tuple) else (result, None)


def attention_case(stateful, window=None, soft_cap=None, **sizes) -> Case:
    def call(op, x, params, **common):
        options = dict(window=window, soft_cap=soft_cap, sinks_H=params.get("sinks"))
        options |= dict(log_forget_BTH=x.get("log_forget"))
        out, lse, *state = op(x["q"], x["k"], x["v"], **options, **common)
        if common["segment_ids"] is not None:
            lse = jnp.where((common["segment_ids"] == 0)[..., None], 0, lse)
        return dict(out=out, lse=lse), state[0] if state else None

    subject = attention_subject(window=window, soft_cap=soft_cap, **sizes)
    return Case(subject, call, attention.attention, context.attention, stateful)


def block_sparse_case(**sizes) -> Case:
    def call(op, x, params, **common):
        out, lse = op(x["q"], x["k"], x["v"], block=sizes["block"], top_k=sizes["top_k"], **common)
        if common["segment_ids"] is not None:
            lse = jnp.where((common["segment_ids"] == 0)[..., None], 0, lse)
        return dict(out=out, lse=lse), None

    single, sharded = block_sparse.block_sparse_attention, context.block_sparse_attention
    return Case(block_sparse_subject(**sizes), call, single, sharded, stateful=False)


def conv_case(width, bias=True, activation=None) -> Case:
    def call(op, x, params, **common):
        common |= dict(activation=activation)
        y, state = with_state(op(x["x"], params["kernel"], params.get("bias"), **common))
        return dict(y=y), state

    subject = conv_subject(width=width, bias=bias, activation=activation)
    return Case(subject, call, causal_conv.causal_conv, context.causal_conv)


def diagonal_case(subject, name, *inputs) -> Case:
    def call(op, x, params, **common):
        h, state = with_state(op(*(x[i] for i in inputs), **common))
        return dict(h=h), state

    return Case(subject, call, getattr(recurrence, name), getattr(context, name))


def gated_case(**options) -> Case:
    def call(op, x, params, **common):
        decay = params.get("decay", x.get("decay"))
        common |= dict(scale=options.get("scale"))
        o, state = with_state(op(x["q"], x["k"], x["v"], decay, **common))
        return dict(o=o), state

    subject = gated_subject(strength=0.01, **options)
    return Case(subject, call, gated_linear.gated_linear, context.gated_linear)


def delta_case(unit_eps=None, **options) -> Case:
    def call(op, x, params, **common):
        arrays = x["q"], x["k"], x["v"], x["beta"], x.get("log_decay")
        common = common | dict(erase_BTGK=x.get("erase"), unit_eps=unit_eps)
        o, state = with_state(op(*arrays, **common))
        return dict(o=o), state

    subject = delta_subject(unit_eps=unit_eps, **options)
    return Case(subject, call, delta_rule.delta_rule, context.delta_rule)


def slots_case(mask_empty=False, gaps=False, **sizes) -> Case:
    def call(op, x, params, **common):
        out, lse, *state = op(
            x["q"],
            x["k"],
            x["v"],
            x["log_gate"],
            x.get("write"),
            mask_empty=mask_empty,
            written_BT=x["mark"][..., 0] > 0 if gaps else None,
            **common,
        )
        return dict(out=out, lse=jnp.maximum(lse, -1e3)), state[0] if state else None

    subject = slots_subject(mask_empty=mask_empty, gaps=gaps, strength=0.05, **sizes)
    return Case(subject, call, gated_slots.gated_slots, context.gated_slots)


def selective_case(**options) -> Case:
    def call(op, x, params, **common):
        y, state = with_state(op(x["x"], x["dt"], params["a"], x["b"], x["c"], **common))
        return dict(y=y), state

    subject = selective_subject(**options)
    return Case(subject, call, selective_scan.selective_scan, context.selective_scan)


CASES = {
    "attention": attention_case(stateful=False, sinks=True),
    "attention, capped": attention_case(stateful=False, soft_cap=5.0, heads=3, kv_heads=3),
    "attention, window in the neighbour": attention_case(stateful=True, window=7, slots=3),
    "attention, window over neighbours": attention_case(
        stateful=True, window=30, sinks=True, slots=9
    ),
    "attention, window over all": attention_case(stateful=True, window=500, slots=2),
    "attention, forgetful": attention_case(stateful=False, sinks=True, decay=0.05),
    "attention, forgetful window": attention_case(stateful=True, window=30, decay=0.05, slots=9),
    "block_sparse_attention": block_sparse_case(block=5, top_k=3),
    "causal_conv": conv_case(4),
    "causal_conv, 8 taps": conv_case(8, bias=False, activation="silu"),
    "linear_recurrence": diagonal_case(recurrence_subject(), "linear_recurrence", "a", "b"),
    "gated_recurrence": diagonal_case(rglru_subject(), "gated_recurrence", "log_a", "x"),
    "gated_linear, fixed": gated_case(decay="head"),
    "gated_linear, head": gated_case(decay="token", scale=0.25),
    "gated_linear, channel": gated_case(decay="channel"),
    "gated_slots": slots_case(),
    "gated_slots, not all written": slots_case(mask_empty=True, gaps=True, tied=False),
    "selective_scan": selective_case(strength=0.05),
    "delta_rule, none": delta_case(gate="none"),
    "delta_rule, head": delta_case(gate="head", decay=0.05, unit_eps=1e-6),
    "delta_rule, channel": delta_case(gate="channel", decay=0.05),
    "delta_rule, erase key": delta_case(gate="channel", decay=0.05, erase=True),
}


def documents(rng, time: int, shards: int) -> jax.Array:
    """(6, T) ids: one document over all shards; one in each shard; the same id twice, with another
    document or padding between; a shard of padding; and two random rows."""
    shard = time // shards
    ids = np.zeros((BATCH, time), np.int32)
    ids[0] = 1
    ids[1] = np.arange(time) // shard + 1
    ids[1, shard // 2 : shard] = 0
    ids[2] = 1
    ids[2, shard + 1 : shard + 3] = 2  # the two documents with id 1 are not adjacent
    ids[3] = 1
    ids[3, shard : 2 * shard] = 0
    ids[4:] = testing.draw_segment_ids(rng, 2, time)
    return jnp.asarray(ids)


def runners(case: Case, mesh, with_ids: bool, with_state: bool, impl="chunked") -> tuple:
    """Compiled functions of (inputs, params, ids, state, cotangents): on one device and sharded."""

    def forward(op, inputs, params, ids, state):
        common = dict(segment_ids=ids, impl=impl)
        if case.stateful:
            common |= dict(initial_state=state, return_state=True)
        outputs, final = case.call(op, inputs, params, **common)
        return (outputs, testing.floats(final)[0]), final

    def gradients(forward):
        def run(inputs, params, ids, state, cotangents):
            floats, rebuild = testing.floats(state)
            (outputs, _), vjp, final = jax.vjp(
                lambda *args: forward(*args[:2], ids, rebuild(args[2])),
                inputs,
                params,
                floats,
                has_aux=True,
            )
            return dict(outputs=outputs, final=final, gradients=vjp(cotangents))

        return jax.jit(run)

    sharded = jax.shard_map(
        partial(forward, partial(case.sharded, axis=AXIS)),
        mesh=mesh,
        in_specs=(SHARD, jax.P(), SHARD if with_ids else None, jax.P() if with_state else None),
        out_specs=((SHARD, jax.P()), jax.P()),
        check_vma=False,
    )
    return gradients(partial(forward, case.single)), gradients(sharded)


def arguments(case: Case, rng, time, ids, with_state, dtype) -> tuple:
    inputs, params = case.subject.inputs(rng, BATCH, time, dtype), case.subject.params(rng, dtype)
    state = case.subject.state(rng, BATCH, dtype) if with_state else None
    common = dict(segment_ids=ids)
    if case.stateful:
        common |= dict(initial_state=state, return_state=True)

    def outputs(inputs, params):
        outputs, final = case.call(case.single, inputs, params, **common)
        return outputs, testing.floats(final)[0]

    shapes = jax.eval_shape(outputs, inputs, params)
    cotangents = jax.tree.map(lambda s: testing.normal(rng, s.shape, s.dtype), shapes)
    return inputs, params, ids, state, cotangents


def check(name: str, rng, mesh, time: int, with_ids=True, with_state=True, **options) -> float:
    """Sharded = single device, outputs, final state and gradients; returns the largest error."""
    case = CASES[name]
    with_state = with_state and case.stateful
    ids = documents(rng, time, mesh.shape[AXIS]) if with_ids else None
    drawn = arguments(case, rng, time, ids, with_state, jnp.float64)
    want, got = (
        jax.device_get(run(*drawn)) for run in runners(case, mesh, with_ids, with_state, **options)
    )
    testing.assert_close(f"{name}: sharded over time = single device", got, want, 1e-10)
    return testing.error(got, want)


def check_contained(name: str, rng, mesh, time: int) -> None:
    """With NaN or infinity planted in a document, sharded = single device, NaN at the same places."""
    case = CASES[name]
    ids = documents(rng, time, mesh.shape[AXIS])
    inputs, params, _, state, cotangents = arguments(case, rng, time, ids, True, jnp.float64)
    plan = Planted(rng, np.asarray(ids))
    planted = plan.inputs(inputs), params, ids, plan.state(state if case.stateful else None)
    single, sharded = runners(case, mesh, True, case.stateful)
    found = single(*planted, cotangents)
    cotangents = plan.cotangents(cotangents[0], found["outputs"]), cotangents[1]
    want, got = (jax.device_get(run(*planted, cotangents)) for run in (single, sharded))
    both = jax.tree.map(lambda x, y: ~np.isfinite(x) & ~np.isfinite(y), want, got)
    want, got = (jax.tree.map(lambda x, b: np.where(b, 0, x), r, both) for r in (want, got))
    testing.assert_close(f"{name}: {plan.value} over time = single device", got, want, 1e-10)


def collectives(name: str, rng, mesh, time: int) -> dict[str, list[tuple[int, ...]]]:
    """The shapes that the compiled value and gradient exchange between devices, by kind."""
    case = dataclasses.replace(CASES[name], stateful=False)
    ids = documents(rng, time, mesh.shape[AXIS])
    drawn = arguments(case, rng, time, ids, False, jnp.float32)
    text = runners(case, mesh, True, False)[1].lower(*drawn).compile().as_text()
    found: dict[str, list[tuple[int, ...]]] = {}
    for kind, _, shape in testing.collectives(text):
        found.setdefault(kind, []).append(shape)
    return found


def check_never_gathers(name: str, rng, mesh, shard: int) -> dict[str, int]:
    """No collective moves the sequence: none but a permute holds the tokens of a shard, and none
    at all those of two. Returns the bytes of each kind, 4 a number.

    `shard` is a number of tokens that no other dimension has.
    """
    moved = collectives(name, rng, mesh, shard * mesh.shape[AXIS])
    for kind, shapes in moved.items():
        for shape in shapes:
            if any(n > shard for n in shape) or (kind != "collective-permute" and shard in shape):
                raise AssertionError(f"{name}: {kind} of {shape}, where a shard has {shard} tokens")
    if "collective-permute" not in moved:
        raise AssertionError(f"{name}: no shard tells the next one anything")
    return {kind: 4 * sum(map(math.prod, shapes)) for kind, shapes in moved.items()}
