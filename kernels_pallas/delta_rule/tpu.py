"""The delta rule as Pallas TPU kernels, forward and backward.

The grid is (batch, blocks of heads, chunks). Chunks are visited in order, in the backward pass in
reverse, with the states of a block's heads (or their cotangents) in vector memory. With w_ij the decay
from after token j to token i and x the erase key (k, unless one is given), the errors
e_i = v_i - S_i^T x_i within a chunk with entering state S solve

    e_i + sum_{j<i} (x_i . w_ij k_j) beta_j e_j = v_i - (w_i0 x_i)^T S,   (I + A) E = R

and o = scale (q w_i0) S + (scale q_i . w_ij k_j beta_j) E, S <- keep S + (k decay_out beta)^T E.
The unknowns are the errors, not the corrections beta e, so that beta scales columns of matrices
everywhere: it is stored as rows of numbers.

The inverse of I + A is float32: blocks of 8 tokens are inverted by forward substitution, then pairs of
blocks X, Y with A_21 between them become [[X, 0], [-Y A_21 X, Y]], up to the chunk. No powers of A are
formed: their entries could be large. A contains the gates: no decay is divided by, strong ones only
make A smaller, and the inverse is computed in the same way for one gate per head and one per channel.
It is saved for the backward pass, with E and the states before the chunks. The cotangent of the inverse
is never needed, because dA = -(T^T dE) E^T.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl

from kernels_pallas.delta_rule.inputs import unit
from kernels_pallas.mxu import NT, TN, dot, resolve_precision
from kernels_pallas.tpu_decays import (
    ROWS,
    ChannelDecays,
    HeadDecays,
    HeadSums,
    Level,
    grid_of,
    levels,
    square,
    sum_products,
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

CHANNELS = 512  # of the keys, or values, of a grid step, at most: 4 heads of 128


def delta_rule(q_BTGK, k_BTGK, v_BTHV, beta_BTH, log_decay, erase_BTGK, call, unit_eps=None):
    """(o_BTHV, last S_BHKV), as the other forms, bad_BT and flag_BT; inputs float32 or bfloat16.

    With `unit_eps` queries and keys are given length 1 first.

    bad_BT is True where an input is not finite and was replaced. flag_BT is that of
    `nonfinite.Contained`.
    """
    if log_decay is None:
        log_decay = jnp.zeros(beta_BTH.shape, jnp.float32)
    batch, time, groups, key_size = k_BTGK.shape
    heads, value_size = v_BTHV.shape[2:]
    plan = GridPlan(
        heads=step_heads(groups, heads, key_size, value_size),
        length=chunk_length(time),
        key_size=key_size,
        value_size=value_size,
        per_channel=log_decay.ndim == 4,
        scale=call.scale,
        precision=resolve_precision(call.precision),
        interpret=call.interpret,
        erase=erase_BTGK is not None,
        unit_eps=unit_eps,
    )
    # The kernel reads padding as documents of one token: masks go on what it returns.
    g, beta = with_resets(log_decay, call.resets_BT), beta_BTH.astype(jnp.float32)
    q, k, v, g, beta = (pad_time(x, plan.length) for x in (q_BTGK, k_BTGK, v_BTHV, g, beta))
    x = flat(pad_time(erase_BTGK, plan.length)) if plan.erase else None

    g = flat(g) if plan.per_channel else plan.rows(g)
    s = plan.heads.split(call.state_B.astype(jnp.float32), 1)
    inputs = flat(q), flat(k), flat(v), plan.rows(beta), g, x, s
    o_BTV, s, marks, flag_BT = _run(plan, *inputs, jnp.zeros((batch, time), q.dtype))
    o_BTHV = call.without_padding(o_BTV.reshape(*v.shape)[:, :time])
    s_BHKV = call.without_last_padding(s.reshape(call.state_B.shape))
    return o_BTHV, s_BHKV, tokens_of(marks, time), flag_BT


def step_heads(groups: int, heads: int, key_size: int, value_size: int) -> Heads:
    """The heads of a grid step."""
    most = min(4, CHANNELS // max(key_size, value_size))
    return Heads.of(groups, heads // groups, key_size, value_size, most)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(plan, q_BTK, k_BTK, v_BTV, beta_BNXRC, g, x_BTK, s_BNRKV, flag_BT):
    inputs = q_BTK, k_BTK, v_BTV, beta_BNXRC, g, x_BTK, s_BNRKV, flag_BT
    return _forward(plan, *inputs, save=False)[0]


def _forward(plan, q_BTK, k_BTK, v_BTV, beta_BNXRC, g, x_BTK, s_BNRKV, flag_BT, save=True):
    erase = [x_BTK] if plan.erase else []
    batch, time, _ = v_BTV.shape
    specs = Specs(plan, time, reverse=False)
    outs = [(specs.values, v_BTV.shape, v_BTV.dtype), (specs.state, s_BNRKV.shape, jnp.float32)]
    outs.append(specs.marked(batch))
    if save:
        outs += [specs.saved(batch, *size) for size in _saved_sizes(plan)]
    o_BTV, last, marks, *saved = specs.call(
        functools.partial(_forward_kernel, plan),
        "delta_rule_forward" + "_erase" * plan.erase,
        [specs.keys, specs.keys, specs.values, specs.rows, specs.gates]
        + [specs.keys] * plan.erase
        + [specs.state],
        outs,
        scratch=[specs.state_scratch()] + specs.factor_scratch(),
    )(q_BTK, k_BTK, v_BTV, beta_BNXRC, g, *erase, s_BNRKV)
    names = ("delta_rule_states", "delta_rule_inverse", "delta_rule_errors")
    saved = [checkpoint_name(x, name) for x, name in zip(saved, names)]
    marks = checkpoint_name(marks, names[0])
    residuals = q_BTK, k_BTK, v_BTV, beta_BNXRC, g, x_BTK, marks, *saved
    return (o_BTV, last, marks, flag_BT), residuals


def _saved_sizes(plan):
    """The sizes of saved states, inverses and errors, per head and chunk."""
    length, value_size = plan.length, plan.value_size
    return (plan.key_size, value_size), (length, length), (length, value_size)


def _backward(plan, residuals, cotangents):
    q_BTK, k_BTK, v_BTV, beta_BNXRC, g, x_BTK, marks, *saved = residuals
    erase = [x_BTK] if plan.erase else []
    do_BTV, ds, _, dflag_BT = cotangents
    batch, time, _ = v_BTV.shape
    specs = Specs(plan, time, reverse=True)
    key_shape = batch, time, plan.heads.blocks * plan.heads.groups * plan.key_size
    shared = plan.heads.sharing > 1

    def of_keys(x):
        return specs.own_keys, key_shape, jnp.float32 if shared else x.dtype

    dq, dk, dv, dbeta, dg, *dx, ds, do_marks = specs.call(
        functools.partial(_backward_kernel, plan),
        "delta_rule_backward" + "_erase" * plan.erase,
        [specs.keys, specs.keys, specs.values, specs.rows, specs.gates]
        + [specs.keys] * plan.erase
        + [specs.per_chunk(*size) for size in _saved_sizes(plan)]
        + [specs.marks, specs.values, specs.state],
        [
            of_keys(q_BTK),
            of_keys(k_BTK),
            (specs.values, v_BTV.shape, v_BTV.dtype),
            (specs.rows, beta_BNXRC.shape, jnp.float32),
            (specs.gates, g.shape, jnp.float32),
            *map(of_keys, erase),
            (specs.state, ds.shape, jnp.float32),
            specs.marked(batch),
        ],
        scratch=[specs.state_scratch()] + specs.factor_scratch(),
    )(q_BTK, k_BTK, v_BTV, beta_BNXRC, g, *erase, *saved, marks, do_BTV, ds)
    dq, dk, *dx = (
        flat(plan.heads.sum_shared(gradient, plan.key_size, x.dtype))
        for gradient, x in zip((dq, dk, *dx), (q_BTK, k_BTK, *erase), strict=True)
    )
    dq = with_marks(dq, do_marks, dflag_BT)
    return dq, dk, dv, dbeta, dg, *(dx or (None,)), ds, jnp.zeros_like(dflag_BT)


_run.defvjp(_forward, _backward)


def unit_lower_inverses(matrices: Sequence[jax.Array], precision) -> list[jax.Array]:
    """(I + a)^-1 of strictly lower triangular a (C, C), C a power of two >= 8: blocks of 8 rows by forward
    substitution, larger ones by doubling. One chain of products waits for its results; several side by
    side fill the time."""
    length = matrices[0].shape[0]
    inverses = [_inverse_of_registers(a_CC) for a_CC in matrices]
    mm = functools.partial(dot, precision=precision)
    for level in map(Level, range(levels(ROWS), levels(length))):
        seconds = [level.second(x) for x in inverses]
        between = [jnp.where(level.pairs(length), level.second(a), 0) for a in matrices]
        between = [level.put_second(jnp.zeros_like(a), x) for a, x in zip(matrices, between)]
        below = [mm(second, x) for second, x in zip(seconds, between)]
        below = [mm(x, inverse) for x, inverse in zip(below, inverses)]
        inverses = [
            level.put_second(inverse, second - x)
            for inverse, second, x in zip(inverses, seconds, below)
        ]
    return inverses


def _inverse_of_registers(a_CC):
    """The same for every block of 8 rows on the diagonal; all else is 0.

    One register holds column c of block n in lane 8 n + c, for all blocks of 8 rows, and forward
    substitution inverts them together.
    """
    length = a_CC.shape[0]
    shape = length // ROWS, ROWS, length
    own = grid_of(shape, 2) // ROWS == grid_of(shape, 0)
    blocks_8C = jnp.sum(jnp.where(own, a_CC.reshape(shape), 0), axis=0)
    row, column = grid_of(blocks_8C.shape, 0), grid_of(blocks_8C.shape, 1) % ROWS
    # Column j of each block, in all lanes of the block.
    columns = [jnp.where(column == j, blocks_8C, 0) for j in range(ROWS - 1)]
    i, j = square(length)
    same = (i // ROWS == j // ROWS).astype(jnp.bfloat16)
    columns = sum_products(jnp.concatenate(columns, axis=0), same)
    inverse_8C = jnp.where(row == column, 1.0, 0.0)
    for j in range(ROWS - 1):
        inverse_8C -= columns[j * ROWS : (j + 1) * ROWS] * inverse_8C[j : j + 1]
    return jnp.where(own, inverse_8C[None], 0).reshape(length, length)


def _inverse_precision(plan):
    """Three bfloat16 products per float32 one if operands are rounded anyway, otherwise more."""
    default = plan.precision == jax.lax.Precision.DEFAULT
    return jax.lax.Precision.HIGH if default else jax.lax.Precision.HIGHEST


class _Scores(NamedTuple):
    """The products of one head times their decays.

    Attributes:
      keys_CC, queries_CC: of keys with keys, below the diagonal; of queries with keys, with it.
      into, out: decays from before the chunk, and to its end, (C, 1 or K).
      keep: decay over the whole chunk, (1 or K, 1).
    """

    keys_CC: jax.Array
    queries_CC: jax.Array
    into: jax.Array
    out: jax.Array
    keep: jax.Array


def _head_scores(plan, grams, sums, h) -> tuple[_Scores, HeadDecays]:
    keys, queries = grams
    decays = HeadDecays.of(sums, h)
    i, j = square(plan.length)
    scores = _Scores(
        jnp.where(i > j, keys * decays.between_CC, 0),
        queries * (decays.between_CC * plan.scale),
        decays.in_C1,
        to_column(decays.out_1C),
        decays.keep_11,
    )
    return scores, decays


def _channel_scores(plan, q, k, x, g_ref, factors_ref, h) -> _Scores:
    """As `_head_scores`, for one gate per channel; writes the factors to factors_ref[h]."""
    mm = functools.partial(dot, precision=plan.precision)

    def keep(n, factor):
        factors_ref[h, n] = factor

    decays = ChannelDecays(head(g_ref[0], h, plan.key_size), keep)
    i, j = square(plan.length)
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    x = x.astype(jnp.float32) if plan.erase else k
    queries = jnp.where(i == j, jnp.sum(q * k, axis=1, keepdims=True), 0)
    keys = jnp.zeros_like(queries)
    for level in map(Level, range(levels(plan.length))):
        factor = factors_ref[h, level.n]
        pairs = level.pairs(plan.length)
        k_n = k * factor

        def merged(found, left, level=level, pairs=pairs, k_n=k_n):
            product = jnp.where(pairs, mm(level.second(left), k_n, NT), level.second(found))
            return level.put_second(found, product)

        queries = merged(queries, q * factor)
        keys = merged(keys, x * factor if plan.erase else k_n)
    last = decays.in_CK[plan.length - 1 :]
    return _Scores(keys, queries * plan.scale, decays.in_CK, decays.out_CK, to_column(last))


def _forward_kernel(plan, q_ref, k_ref, v_ref, beta_ref, g_ref, *refs):
    x_ref, *refs = refs if plan.erase else (k_ref, *refs)
    s0_ref, o_ref, last_ref, marks_ref, *refs = refs
    *saved_refs, s_ref = refs[:-1] if plan.per_channel else refs
    factors_ref = refs[-1] if plan.per_channel else None
    blocks, rows = _inputs(plan, q_ref, k_ref, v_ref, beta_ref, g_ref, x_ref)
    marks_ref[0, 0, 0] = contain_forward(blocks, rows, g_ref)

    @pl.when(pl.program_id(2) == 0)
    def _():
        s_ref[...] = s0_ref[0, 0]

    mm = functools.partial(dot, precision=plan.precision)
    sums = None if plan.per_channel else HeadSums.of(g_ref[0, 0, 0])
    steps = []
    for group, members in plan.heads.by_group():
        q, k = (_query_or_key(plan, ref, group) for ref in (q_ref, k_ref))
        x = head(x_ref[0], group, plan.key_size) if plan.erase else k
        grams = None if plan.per_channel else (mm(x, k, NT), mm(q, k, NT))
        for h in members:
            if plan.per_channel:
                scores = _channel_scores(plan, q, k, x, g_ref, factors_ref, h)
            else:
                scores, _ = _head_scores(plan, grams, sums, h)
            steps.append((h, q, k, x, scores, beta_ref[0, 0, 0, h : h + 1]))
    systems = [scores.keys_CC * beta_1C for *_, scores, beta_1C in steps]
    inverses = unit_lower_inverses(systems, _inverse_precision(plan))
    for (h, q, k, x, scores, beta_1C), inverse in zip(steps, inverses, strict=True):
        s = s_ref[h]
        v = head(v_ref[0], h, plan.value_size)
        errors = mm(inverse, v - mm(x * scores.into, s))
        o = mm(scores.queries_CC * beta_1C, errors) + mm(q * (scores.into * plan.scale), s)
        o_ref[0, :, h * plan.value_size : (h + 1) * plan.value_size] = o.astype(o_ref.dtype)
        written = mm((k * scores.out).T * beta_1C, errors)
        for ref, saved in zip(saved_refs, (s, inverse, errors)):
            ref[0, 0, 0, h] = saved.astype(ref.dtype)
        s_ref[h] = scores.keep * s + written

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        last_ref[0, 0] = s_ref[...]


def _query_or_key(plan, ref, group):
    """Queries or keys (C, K) of a head, of length 1 if the plan says so."""
    x = head(ref[0], group, plan.key_size)
    return x if plan.unit_eps is None else unit(x, plan.unit_eps)


def _unit_gradient(plan, ref, group, dx):
    """The gradient of a head's block from that of `_query_or_key`."""
    if plan.unit_eps is None:
        return dx
    x = head(ref[0], group, plan.key_size).astype(jnp.float32)
    norm = jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=1, keepdims=True) + plan.unit_eps)
    x = x * norm
    return (dx - x * jnp.sum(x * dx, axis=1, keepdims=True)) * norm


def _inputs(plan, q_ref, k_ref, v_ref, beta_ref, g_ref, x_ref):
    """The blocks of inputs: tokens by channels, and tokens along lanes."""
    blocks = [q_ref, k_ref, v_ref] + [x_ref] * plan.erase
    if plan.per_channel:
        return [*blocks, g_ref], [beta_ref]
    return blocks, [beta_ref, g_ref]


def _backward_kernel(
    plan,
    q_ref,
    k_ref,
    v_ref,
    beta_ref,
    g_ref,
    *refs,
):
    x_ref, *refs = refs if plan.erase else (k_ref, *refs)
    states_ref, inverses_ref, errors_ref, marks_ref, do_ref, dlast_ref, *refs = refs
    dq_ref, dk_ref, dv_ref, dbeta_ref, dg_ref, *refs = refs
    dx_ref, *refs = refs if plan.erase else (dk_ref, *refs)
    ds0_ref, do_marks_ref, ds_ref, *factors_ref = refs
    blocks, rows = _inputs(plan, q_ref, k_ref, v_ref, beta_ref, g_ref, x_ref)
    do_marks_ref[0, 0, 0] = contain_backward(do_ref, marks_ref, blocks, rows, g_ref)

    @pl.when(pl.program_id(2) == 0)
    def _():
        ds_ref[...] = dlast_ref[0, 0]

    mm = functools.partial(dot, precision=plan.precision)
    sums = None if plan.per_channel else HeadSums.of(g_ref[0, 0, 0])
    for group, members in plan.heads.by_group():
        q, k = (_query_or_key(plan, ref, group) for ref in (q_ref, k_ref))
        x = head(x_ref[0], group, plan.key_size) if plan.erase else k
        grams = None if plan.per_channel else (mm(x, k, NT), mm(q, k, NT))
        dq_group = dk_group = dx_group = 0.0
        for h in members:
            values = slice(h * plan.value_size, (h + 1) * plan.value_size)
            step = _Backward(
                plan,
                q,
                k,
                x,
                beta_ref[0, 0, 0, h : h + 1],
                states_ref[0, 0, 0, h],
                inverses_ref[0, 0, 0, h],
                errors_ref[0, 0, 0, h],
                do_ref[0, :, values],
                ds_ref[h],
            )
            if plan.per_channel:
                scores = _channel_scores(plan, q, k, x, g_ref, *factors_ref, h)
                dq, dk, dx, dv, dbeta, dg, ds = step.per_channel(scores, factors_ref[0], h)
                dg_ref[0, :, h * plan.key_size : (h + 1) * plan.key_size] = dg
            else:
                scores, decays = _head_scores(plan, grams, sums, h)
                dq, dk, dx, dv, dbeta, dg, ds = step.per_head(scores, decays)
                dg_ref[0, 0, 0, h : h + 1] = dg
            dv_ref[0, :, values] = dv.astype(dv_ref.dtype)
            dbeta_ref[0, 0, 0, h : h + 1] = dbeta
            ds_ref[h] = ds
            dq_group, dk_group = dq_group + dq, dk_group + dk
            if plan.erase:
                dx_group = dx_group + dx
        columns = slice(group * plan.key_size, (group + 1) * plan.key_size)
        for ref, dref, dx in ((q_ref, dq_ref, dq_group), (k_ref, dk_ref, dk_group)):
            dref[0, :, columns] = _unit_gradient(plan, ref, group, dx).astype(dref.dtype)
        if plan.erase:
            dx_ref[0, :, columns] = dx_group.astype(dx_ref.dtype)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        ds0_ref[0, 0] = ds_ref[...]


class _Backward(NamedTuple):
    """The backward pass of one head of one chunk, from its saved arrays and the cotangents of its
    output and of the state after it. Returns gradients of q, k, the erase key x (None if it is k), v,
    beta, g and the state before it."""

    plan: GridPlan
    q: jax.Array
    k: jax.Array
    x: jax.Array
    beta_1C: jax.Array
    s: jax.Array
    inverse: jax.Array
    errors: jax.Array
    do: jax.Array
    ds: jax.Array

    def mm(self, x, y, dims=((1,), (0,))):
        return dot(x, y, dims, self.plan.precision)

    def _shared(self, scores):
        """The part that is the same for all gates."""
        mm, k, ds = self.mm, self.k, self.ds
        i, j = square(self.plan.length)
        written_C1 = to_column(self.beta_1C)
        derrors = mm(scores.queries_CC * self.beta_1C, self.do, TN)
        derrors += mm(k * (scores.out * written_C1), ds)
        dv = mm(self.inverse, derrors, TN)
        da = jnp.where(i > j, -mm(dv, self.errors, NT), 0)
        dqueries = mm(self.do, self.errors, NT)
        into = scores.into * self.plan.scale
        dq = mm(self.do, self.s, NT) * into
        dx_read = -mm(dv, self.s, NT) * scores.into
        # Of k * decay_out * beta, times all but k, and times all but beta.
        dk_out = mm(self.errors, ds, NT) * scores.out
        dbeta = da * scores.keys_CC + dqueries * scores.queries_CC
        dbeta += jnp.where(i == j, jnp.sum(k * dk_out, axis=1, keepdims=True), 0)
        dbeta = jnp.sum(dbeta, axis=0, keepdims=True)
        ds_before = scores.keep * ds + mm(self.q * into, self.do, TN)
        ds_before -= mm(self.x * scores.into, dv, TN)
        return (
            dv,
            da * self.beta_1C,
            dqueries * self.beta_1C,
            dq,
            dx_read,
            dk_out * written_C1,
            (dbeta, ds_before),
        )

    def per_head(self, scores: _Scores, decays: HeadDecays):
        mm, q, k, x = self.mm, self.q, self.k, self.x
        dv, dkeys, dqueries, dq, dx_read, dk_written, (dbeta, ds) = self._shared(scores)
        dg = decays.gradient(
            dkeys * scores.keys_CC + dqueries * scores.queries_CC,
            jnp.sum(q * dq + x * dx_read, axis=1, keepdims=True),
            jnp.sum(k * dk_written, axis=1, keepdims=True),
            scores.keep * jnp.sum(self.ds * self.s.astype(jnp.float32), axis=(0, 1), keepdims=True),
        )
        dkeys = dkeys * decays.between_CC
        dqueries = dqueries * (decays.between_CC * self.plan.scale)
        dq = dq + mm(dqueries, k)
        if self.plan.erase:
            dk = dk_written + mm(dkeys, x, TN) + mm(dqueries, q, TN)
            return dq, dk, dx_read + mm(dkeys, k), dv, dbeta, dg, ds
        dk = dx_read + dk_written + mm(dkeys, k) + mm(dkeys, k, TN) + mm(dqueries, q, TN)
        return dq, dk, None, dv, dbeta, dg, ds

    def per_channel(self, scores: _Scores, factors_ref, h):
        mm, length = self.mm, self.plan.length
        erase, q, k = self.plan.erase, self.q.astype(jnp.float32), self.k.astype(jnp.float32)
        x = self.x.astype(jnp.float32) if erase else k
        dv, dkeys, dqueries, dq, dx, dk_written, (dbeta, ds) = self._shared(scores)
        dqueries = dqueries * self.plan.scale
        i, j = square(length)
        last = grid_of(q.shape, 0) == length - 1
        ds_s = jnp.sum(self.ds * self.s.astype(jnp.float32), axis=1, keepdims=True)
        din = q * dq + x * dx + jnp.where(last, to_row(scores.keep * ds_s), 0)
        dout = k * dk_written
        diagonal = jnp.sum(jnp.where(i == j, dqueries, 0), axis=1, keepdims=True)
        dq = dq + diagonal * k
        dk = (dk_written if erase else dx + dk_written) + diagonal * q

        def dfactor(n):
            nonlocal dq, dk, dx
            level, factor = Level(n), factors_ref[h, n]
            pairs, zeros = level.pairs(length), jnp.zeros_like(q)
            dqueries_n, dkeys_n = (jnp.where(pairs, level.second(d), 0) for d in (dqueries, dkeys))
            q_n, k_n = q * factor, k * factor
            dq_n = level.put_second(zeros, mm(dqueries_n, k_n)) * factor
            dx_n = level.put_second(zeros, mm(dkeys_n, k_n)) * factor
            x_n = x * factor if erase else k_n
            if erase:
                dk_n = mm(dqueries_n, level.second(q_n), TN) * factor
            else:
                dk_n = dx_n + mm(dqueries_n, level.second(q_n), TN) * factor
            dk_n += mm(dkeys_n, level.second(x_n), TN) * factor
            dq, dk = dq + dq_n, dk + dk_n
            if not erase:
                return q * dq_n + k * dk_n
            dx = dx + dx_n
            return q * dq_n + k * dk_n + x * dx_n

        dg = ChannelDecays.gradient(dfactor, din, dout)
        return dq, dk, dx if erase else None, dv, dbeta, dg, ds
