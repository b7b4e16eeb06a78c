"""Gated linear attention as Pallas TPU kernels, forward and backward.

The grid is (batch, blocks of heads, chunks). Chunks are visited in order, in the backward pass in
reverse, with the states of a block's heads (or their cotangents) in vector memory. The states before
the chunks are saved for the backward pass, rounded as the products that read them round them. A step
computes one chunk of a few heads:

    o = (scale q k^T * decays) v + scale decay_in * (q S),   S <- keep S + (k * decay_out)^T v

With one gate per head `decays` is a separate matrix. With one per channel, q and k are multiplied by
the decays, and the matrix is computed level by level (`ChannelDecays`).
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl

from kernels_pallas.gated_linear.inputs import per_token
from kernels_pallas.mxu import NT, TN, dot, resolve_precision
from kernels_pallas.tpu_decays import (
    ChannelDecays,
    HeadDecays,
    HeadSums,
    Level,
    grid_of,
    levels,
    square,
    to_column,
    to_row,
    with_resets,
)
from kernels_pallas.tpu_grid import (
    GridPlan,
    Heads,
    Specs,
    chunk_length,
    flat,
    head,
    pad_time,
    tokens_of,
    with_marks,
)
from kernels_pallas.tpu_nonfinite import contain_backward, contain_forward

CHANNELS = 1024  # of the keys, or values, of a grid step, at most: 8 heads of 128
GATED_CHANNELS = 512  # the same with one gate per channel


def gated_linear(q_BTGK, k_BTGK, v_BTHV, log_decay, call):
    """(o_BTHV, last S_BHKV), as the other forms, bad_BT and flag_BT; inputs float32 or bfloat16.

    bad_BT is True where an input is not finite and was replaced. flag_BT is that of
    `nonfinite.Contained`.
    """
    log_decay = per_token(log_decay, v_BTHV, call)
    batch, time, groups, key_size = k_BTGK.shape
    heads, value_size = v_BTHV.shape[2:]
    per_channel = log_decay.ndim == 4
    plan = GridPlan(
        heads=step_heads(groups, heads, key_size, value_size, per_channel),
        length=chunk_length(time),
        key_size=key_size,
        value_size=value_size,
        per_channel=per_channel,
        scale=1.0 if call.scale is None else call.scale,
        precision=resolve_precision(call.precision),
        interpret=call.interpret,
    )
    # The kernel reads padding as documents of one token: masks go on what it returns.
    g = with_resets(log_decay, call.resets_BT)
    q, k, v, g = (pad_time(x, plan.length) for x in (q_BTGK, k_BTGK, v_BTHV, g))
    g = flat(g) if per_channel else plan.rows(g)
    s = plan.heads.split(call.state_B.astype(jnp.float32), 1)
    flag_BT = jnp.zeros((batch, time), q.dtype)
    o_BTV, s, marks, flag_BT = _attend(plan, flat(q), flat(k), flat(v), g, s, flag_BT)
    o_BTHV = call.without_padding(o_BTV.reshape(*v.shape)[:, :time].astype(call.dtype))
    s_BHKV = call.without_last_padding(s.reshape(call.state_B.shape))
    return o_BTHV, s_BHKV, tokens_of(marks, time), flag_BT


def step_heads(groups: int, heads: int, key_size: int, value_size: int, per_channel: bool) -> Heads:
    """The heads of a grid step."""
    channels = GATED_CHANNELS if per_channel else CHANNELS
    most = min(8, channels // max(key_size, value_size))
    return Heads.of(groups, heads // groups, key_size, value_size, most)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan, q_BTK, k_BTK, v_BTV, g, s_BNRKV, flag_BT):
    return _forward(plan, q_BTK, k_BTK, v_BTV, g, s_BNRKV, flag_BT, save_states=False)[0]


def _forward(plan, q_BTK, k_BTK, v_BTV, g, s_BNRKV, flag_BT, save_states=True):
    specs = Specs(plan, v_BTV.shape[1], reverse=False)
    outs = [(specs.values, v_BTV.shape, v_BTV.dtype), (specs.state, s_BNRKV.shape, jnp.float32)]
    outs.append(specs.marked(v_BTV.shape[0]))
    if save_states:
        outs.append(specs.saved_states(v_BTV.shape[0]))
    o_BTV, last, marks, *states = specs.call(
        functools.partial(_forward_kernel, plan),
        "gated_linear_forward",
        [specs.keys, specs.keys, specs.values, specs.gates, specs.state],
        outs,
        scratch=[specs.state_scratch()] + specs.factor_scratch(),
    )(q_BTK, k_BTK, v_BTV, g, s_BNRKV)
    marks, *states = (checkpoint_name(x, "gated_linear_states") for x in (marks, *states))
    return (o_BTV, last, marks, flag_BT), (q_BTK, k_BTK, v_BTV, g, marks, *states)


def _backward(plan, residuals, cotangents):
    q_BTK, k_BTK, v_BTV, g, marks, states = residuals
    do_BTV, ds, _, dflag_BT = cotangents
    batch, time, _ = v_BTV.shape
    specs = Specs(plan, time, reverse=True)
    key_shape = batch, time, plan.heads.blocks * plan.heads.groups * plan.key_size
    shared = plan.heads.sharing > 1
    dq, dk, dv, dg, ds, do_marks = specs.call(
        functools.partial(_backward_kernel, plan),
        "gated_linear_backward",
        [
            specs.keys,
            specs.keys,
            specs.values,
            specs.gates,
            specs.states,
            specs.marks,
            specs.values,
            specs.state,
        ],
        [
            (specs.own_keys, key_shape, jnp.float32 if shared else q_BTK.dtype),
            (specs.own_keys, key_shape, jnp.float32 if shared else k_BTK.dtype),
            (specs.values, v_BTV.shape, v_BTV.dtype),
            (specs.gates, g.shape, jnp.float32),
            (specs.state, ds.shape, jnp.float32),
            specs.marked(batch),
        ],
        scratch=[specs.state_scratch()] + specs.factor_scratch(),
    )(q_BTK, k_BTK, v_BTV, g, states, marks, do_BTV, ds)
    dq, dk = (
        flat(plan.heads.sum_shared(dx, plan.key_size, x.dtype))
        for dx, x in ((dq, q_BTK), (dk, k_BTK))
    )
    return with_marks(dq, do_marks, dflag_BT), dk, dv, dg, ds, jnp.zeros_like(dflag_BT)


_attend.defvjp(_forward, _backward)


def _inputs(plan, q_ref, k_ref, v_ref, g_ref):
    """The blocks of inputs: tokens by channels, and tokens along lanes."""
    blocks = [q_ref, k_ref, v_ref]
    return ([*blocks, g_ref], []) if plan.per_channel else (blocks, [g_ref])


def _forward_kernel(plan, q_ref, k_ref, v_ref, g_ref, s0_ref, o_ref, last_ref, marks_ref, *refs):
    *states_ref, s_ref = refs[:-1] if plan.per_channel else refs
    factors_ref = refs[-1] if plan.per_channel else None
    blocks, rows = _inputs(plan, q_ref, k_ref, v_ref, g_ref)
    marks_ref[0, 0, 0] = contain_forward(blocks, rows, g_ref)
    chunk = pl.program_id(2)

    @pl.when(chunk == 0)
    def _():
        s_ref[...] = s0_ref[0, 0]

    for ref in states_ref:
        ref[0, 0, 0] = s_ref[...].astype(ref.dtype)
    mm = functools.partial(dot, precision=plan.precision)
    sums = None if plan.per_channel else HeadSums.of(g_ref[0, 0, 0])
    for group, members in plan.heads.by_group():
        q, k = (head(ref[0], group, plan.key_size) for ref in (q_ref, k_ref))
        scores = None if plan.per_channel else mm(q, k, NT)
        k_t = None if plan.per_channel else k.astype(jnp.float32).T
        for h in members:
            v = head(v_ref[0], h, plan.value_size)
            s = s_ref[h]
            if plan.per_channel:
                weights, decays = _channel_weights(plan, q, k, g_ref, factors_ref, h)
                read = mm(q * (decays.in_CK * plan.scale), s)
                written = mm(k * decays.out_CK, v, TN)
                keep = to_column(decays.in_CK[plan.length - 1 :])
            else:
                decays = HeadDecays.of(sums, h)
                weights = scores * (decays.between_CC * plan.scale)
                read = mm(q, s) * (decays.in_C1 * plan.scale)
                written = mm(k_t * decays.out_1C, v)
                keep = decays.keep_11
            o = mm(weights, v) + read
            o_ref[0, :, h * plan.value_size : (h + 1) * plan.value_size] = o.astype(o_ref.dtype)
            s_ref[h] = keep * s + written

    @pl.when(chunk == pl.num_programs(2) - 1)
    def _():
        last_ref[0, 0] = s_ref[...]


def _channel_weights(plan, q, k, g_ref, factors_ref, h):
    """Weights (C, C) of one head, and its decays; writes the factors to factors_ref[h]."""
    mm = functools.partial(dot, precision=plan.precision)

    def keep(n, factor):
        factors_ref[h, n] = factor

    decays = ChannelDecays(head(g_ref[0], h, plan.key_size), keep)
    i, j = square(plan.length)
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    weights = jnp.where(i == j, jnp.sum(q * k, axis=1, keepdims=True), 0)
    for level in map(Level, range(levels(plan.length))):
        factor = factors_ref[h, level.n]
        product = mm(level.second(q * factor), k * factor, NT)
        product = jnp.where(level.pairs(plan.length), product, level.second(weights))
        weights = level.put_second(weights, product)
    return weights * plan.scale, decays


def _backward_kernel(
    plan,
    q_ref,
    k_ref,
    v_ref,
    g_ref,
    states_ref,
    marks_ref,
    do_ref,
    dlast_ref,
    dq_ref,
    dk_ref,
    dv_ref,
    dg_ref,
    ds0_ref,
    do_marks_ref,
    ds_ref,
    *factors_ref,
):
    blocks, rows = _inputs(plan, q_ref, k_ref, v_ref, g_ref)
    do_marks_ref[0, 0, 0] = contain_backward(do_ref, marks_ref, blocks, rows, g_ref)

    @pl.when(pl.program_id(2) == 0)
    def _():
        ds_ref[...] = dlast_ref[0, 0]

    step = _channel_backward if plan.per_channel else _head_backward
    gates = g_ref if plan.per_channel else HeadSums.of(g_ref[0, 0, 0])
    for group, members in plan.heads.by_group():
        columns = slice(group * plan.key_size, (group + 1) * plan.key_size)
        q, k = (head(ref[0], group, plan.key_size) for ref in (q_ref, k_ref))
        dq = dk = None
        for h in members:
            v, do = (head(ref[0], h, plan.value_size) for ref in (v_ref, do_ref))
            s = states_ref[0, 0, 0, h]
            grads = step(plan, q, k, v, gates, s, do, ds_ref, h, *factors_ref)
            dq, dk = (grads[0], grads[1]) if dq is None else (dq + grads[0], dk + grads[1])
            dv_ref[0, :, h * plan.value_size : (h + 1) * plan.value_size] = grads[2].astype(
                dv_ref.dtype
            )
            if plan.per_channel:
                dg_ref[0, :, h * plan.key_size : (h + 1) * plan.key_size] = grads[3]
            else:
                dg_ref[0, 0, 0, h : h + 1] = grads[3]
        dq_ref[0, :, columns] = dq.astype(dq_ref.dtype)
        dk_ref[0, :, columns] = dk.astype(dk_ref.dtype)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        ds0_ref[0, 0] = ds_ref[...]


def _head_backward(plan, q, k, v, sums, s, do, ds_ref, h):
    """Gradients of q, k, v and g of one head; updates ds_ref[h] to the state before the chunk."""
    mm = functools.partial(dot, precision=plan.precision)
    decays = HeadDecays.of(sums, h)
    ds = ds_ref[h]
    between = decays.between_CC * plan.scale
    into = decays.in_C1 * plan.scale
    out = to_column(decays.out_1C)
    weights = mm(q, k, NT) * between
    dweights = mm(do, v, NT)
    dscores = dweights * between
    dq_read = mm(do, s, NT) * into
    dk_written = mm(v, ds, NT) * out
    dq = mm(dscores, k) + dq_read
    dk = mm(dscores, q, TN) + dk_written
    dv = mm(weights, do, TN) + mm(k, ds) * out
    s = s.astype(jnp.float32)
    dkeep = decays.keep_11 * jnp.sum(ds * s, axis=(0, 1), keepdims=True)
    dg = decays.gradient(
        dweights * weights,
        jnp.sum(q * dq_read, axis=1, keepdims=True),
        jnp.sum(k * dk_written, axis=1, keepdims=True),
        dkeep,
    )
    ds_ref[h] = decays.keep_11 * ds + mm(q * into, do, TN)
    return dq, dk, dv, dg


def _channel_backward(plan, q, k, v, g_ref, s, do, ds_ref, h, factors_ref):
    """The same, with one gate per channel."""
    mm = functools.partial(dot, precision=plan.precision)
    weights, decays = _channel_weights(plan, q, k, g_ref, factors_ref, h)
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    ds = ds_ref[h]
    i, j = square(plan.length)
    dweights = mm(do, v, NT) * plan.scale
    diagonal = jnp.sum(jnp.where(i == j, dweights, 0), axis=1, keepdims=True)
    read = decays.in_CK * plan.scale * mm(do, s, NT)
    written = decays.out_CK * mm(v, ds, NT)
    dq, dk = diagonal * k + read, diagonal * q + written
    dv = mm(weights, do, TN) + mm(k * decays.out_CK, ds)
    ds_s = jnp.sum(ds * s.astype(jnp.float32), axis=1, keepdims=True)
    keep = decays.in_CK[plan.length - 1 :]
    last = grid_of(q.shape, 0) == plan.length - 1
    din = q * read + jnp.where(last, keep * to_row(ds_s), 0)
    ds_ref[h] = to_column(keep) * ds + mm(q * (decays.in_CK * plan.scale), do, TN)

    def dfactor(n):
        nonlocal dq, dk
        level, factor = Level(n), factors_ref[h, n]
        pairs = jnp.where(level.pairs(plan.length), level.second(dweights), 0)
        dq_n = level.put_second(jnp.zeros_like(q), mm(pairs, k * factor)) * factor
        dk_n = mm(pairs, level.second(q * factor), TN) * factor
        dq, dk = dq + dq_n, dk + dk_n
        return q * dq_n + k * dk_n

    dg = decays.gradient(dfactor, din, k * written)
    return dq, dk, dv, dg
