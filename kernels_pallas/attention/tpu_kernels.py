"""The bodies of the TPU attention kernels: what one grid step does with its block of queries.

Letters: C queries of a block, t of a tile; keys stand on sublanes, queries on lanes. Logits are
kept times log2(e), so that the chip's own power of two makes the probabilities.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels_pallas import mxu
from kernels_pallas.attention.intervals import LOWEST_MAX, NEGATIVE, NOTHING

LOG2E = math.log2(math.e)
SUBLANES = 8


class Part(NamedTuple):
    """`width` queries, from column `query` of the block on, and the keys that they meet: `rows`
    from row `key` of those visited."""

    query: int
    width: int
    key: int
    rows: int

    @property
    def columns(self) -> slice:
        return slice(self.query, self.query + self.width)

    @property
    def pairs(self) -> tuple[slice, slice]:
        return slice(self.key, self.key + self.rows), self.columns

    def cut(self, rows: int) -> list["Part"]:
        """The same queries, `rows` keys at a time."""
        return [self._replace(key=self.key + at, rows=rows) for at in range(0, self.rows, rows)]


class Plan(NamedTuple):
    """How one call is cut, and its options.

    `reach` is how many keys before its own a block of queries brings with it, a multiple of
    `tile`, and of `block` where it is longer; None is full attention. Key arrays have `front`
    tokens before the first query. `unit` is what the matrix unit multiplies at once, queries and
    keys, and `slice` the keys of it whose logits or weights are made at once (with more of them,
    registers spill); each divides the one before.
    """

    tile: int
    unit: int
    slice: int
    block: int
    reach: int | None
    front: int
    scale: float
    soft_cap: float | None
    precision: Any

    @property
    def band(self) -> bool:
        """Whether a block's whole reach is visited at once."""
        return self.reach is not None and self.reach <= self.block

    @property
    def rows(self) -> int:
        """Keys visited at once."""
        return self.block + self.reach if self.band else self.block

    @property
    def own_first(self) -> int:
        """Position of the first key of the block's own visit, relative to its first query."""
        return -self.reach if self.band else 0

    def own(self) -> list[Part]:
        """The visit that includes the diagonal."""
        tiles = range(0, self.block, self.tile)
        if self.band:
            return [Part(at, self.tile, at, self.reach + self.tile) for at in tiles]
        return [Part(at, self.tile, 0, at + self.tile) for at in tiles]

    def before(self) -> list[Part]:
        """A visit to an earlier block of keys."""
        return [Part(at, self.unit, 0, self.block) for at in range(0, self.block, self.unit)]

    def turns(self, value_size: int) -> list[tuple[str, Part]]:
        """What the forward pass does at a visit to an earlier block, a unit of queries and of keys
        at a time: "score" makes logits, "weigh" adds up values.

        The compiler stays near this order, found by compiling hundreds. Two units of queries are
        weighed key by key, in turn: a product's results are added up and gone before the next one
        of the same queries, and sums of two units, not of a block, are in registers. Where more
        units follow, values of 128 spill nothing if the first are weighed before the last logits
        are made, and other sizes less if not.
        """
        units = [part.cut(self.unit) for part in self.before()]
        scores = [("score", part) for unit in units for part in unit]
        pairs = [units[at : at + 2] for at in range(0, len(units), 2)]
        weights = [("weigh", part) for pair in pairs for parts in zip(*pair) for part in parts]
        if len(pairs) == 1 or value_size != 128:
            return scores + weights
        return [*scores[:-1], weights[0], scores[-1], *weights[1:]]


class _Visit(NamedTuple):
    """Keys from row `row` of their array on, whose first stands `position` tokens after the
    block's first query (before it: negative). `own` meets the diagonal; `clear` needs no mask."""

    parts: list[Part]
    row: Any
    position: Any
    own: bool = False
    clear: bool = False

    def keys(self, part: Part):
        if isinstance(self.row, int):
            return slice(self.row + part.key, self.row + part.key + part.rows)
        return pl.ds(self.row + part.key, part.rows)


def forward(
    visits_ref,
    clear_ref,
    sinks_ref,
    q_ref,
    k_ref,
    vt_ref,
    start_ref,
    out_ref,
    lse_ref,
    logits_ref,
    max_ref,
    shrink_ref,
    sum_ref,
    acc_ref,
    *,
    plan: Plan,
    has_sinks: bool,
):
    """out^T (V, C) and lse (1, C) of a block of queries."""
    block = pl.program_id(2)
    index = pl.program_id(0) * pl.num_programs(2) + block
    visits, clear = visits_ref[index], clear_ref[index]
    head = pl.program_id(1) * pl.num_programs(3) + pl.program_id(3)
    dot_of = dict(precision=plan.precision)

    def own_keys():
        """Maximum, sum and values of each part, over the keys of the block's own visit."""
        visit, tops, results = _own_visit(plan, block), [], []
        for part in visit.parts:
            logits = _logits(q_ref, k_ref, start_ref, plan, visit, part)[0]
            logits_ref[part.pairs] = logits
            tops.append(jnp.max(logits, axis=0, keepdims=True))
        for part, top in zip(visit.parts, tops):
            top = jnp.maximum(top, LOWEST_MAX)
            p = jnp.exp2(logits_ref[part.pairs] - top)
            values = vt_ref[0, 0, :, visit.keys(part)]
            out = mxu.dot(values, p.astype(values.dtype), mxu.NN, **dot_of)
            results.append((top, jnp.sum(p, axis=0, keepdims=True), out))
        return results

    def score(visit: _Visit, part: Part, highest):
        """Makes the logits of some keys; returns the maximum per sublane. The last keys of a block
        make the queries' new maximum."""
        columns = part.columns
        products = _products(q_ref, k_ref, plan, visit, part)
        for cut in part.cut(plan.slice):
            rows = slice(cut.key - part.key, cut.key - part.key + cut.rows)
            logits = _masked(products[rows], start_ref, plan, visit, cut)[0]
            logits_ref[cut.pairs] = logits
            highest = jnp.maximum(highest, jnp.max(_registers(logits), axis=0))
        if part.key + part.rows == plan.block:
            old = max_ref[:, columns]
            top = jnp.maximum(old, jnp.max(highest, axis=0, keepdims=True))
            max_ref[:, columns] = top
            shrink_ref[:, columns] = jnp.exp2(old - top)
        return highest

    def weigh(visit: _Visit, part: Part, total):
        """Adds the values of some keys, weighted; returns the sum of weights per sublane."""
        columns, shrink = part.columns, shrink_ref[:, part.columns]
        top, values, weights = max_ref[:, columns], vt_ref[0, 0, :, visit.keys(part)], []
        for cut in part.cut(plan.slice):
            p = jnp.exp2(logits_ref[cut.pairs] - top)
            total += jnp.sum(_registers(p), axis=0)
            weights.append(p.astype(values.dtype))
        out = mxu.dot(values, jnp.concatenate(weights), mxu.NN, **dot_of)
        before = acc_ref[:, columns]
        acc_ref[:, columns] = (before if part.key else before * shrink) + out
        if part.key + part.rows == plan.block:
            total = jnp.sum(total, axis=0, keepdims=True)
            sum_ref[:, columns] = sum_ref[:, columns] * shrink + total
        return total

    def finish(part: Part, top, total, out):
        columns = part.columns
        if has_sinks:
            sink = jnp.full_like(top, sinks_ref[head] * LOG2E)
            highest = jnp.maximum(top, sink)
            out, total = out * jnp.exp2(top - highest), total * jnp.exp2(top - highest)
            top, total = highest, total + jnp.exp2(sink - highest)
        empty = start_ref[0, :, columns] == NOTHING
        total = jnp.where(empty, 1, total)
        lse = (top + jnp.log2(total)) / LOG2E
        out_ref[0, 0, :, columns] = jnp.where(empty, 0, out / total).astype(out_ref.dtype)
        lse_ref[0, 0, :, columns] = jnp.where(empty, NEGATIVE, lse)

    @pl.when(visits < 0)
    def _():
        out_ref[...] = jnp.zeros_like(out_ref)
        lse_ref[...] = jnp.full_like(lse_ref, NEGATIVE)

    @pl.when(visits >= 0)
    def _():
        own = own_keys()
        if plan.band:
            for part, result in zip(plan.own(), own):
                finish(part, *result)
            return
        for part, result in zip(plan.own(), own):
            for ref, value in zip((max_ref, sum_ref, acc_ref), result):
                ref[:, part.columns] = value

        def earlier(number, carry, is_clear):
            visit = _earlier_visit(plan, block, number, is_clear)
            shape = SUBLANES, plan.unit
            highest = {part.query: jnp.full(shape, NEGATIVE) for part in visit.parts}
            totals = {part.query: jnp.zeros(shape) for part in visit.parts}
            for turn, part in plan.turns(vt_ref.shape[2]):
                if turn == "score":
                    highest[part.query] = score(visit, part, highest[part.query])
                else:
                    totals[part.query] = weigh(visit, part, totals[part.query])
            return carry

        _for_earlier(clear, visits, earlier)
        for part in plan.own():
            columns = part.columns
            finish(part, max_ref[:, columns], sum_ref[:, columns], acc_ref[:, columns])


def backward(
    visits_ref,
    clear_ref,
    q_ref,
    do_ref,
    k_ref,
    kt_ref,
    v_ref,
    start_ref,
    lse_ref,
    delta_ref,
    dqt_ref,
    dk_ref,
    dv_ref,
    p_ref,
    ds_ref,
    acc_ref,
    *sums_refs,
    plan: Plan,
):
    """dq^T (K, C) of a block of queries, and its part of dk and dv; `lse` is times log2(e)."""
    block, head = pl.program_id(2), pl.program_id(3)
    index = pl.program_id(0) * pl.num_programs(2) + block
    visits, clear = visits_ref[index], clear_ref[index]
    first_step = (block == 0) & (head == 0)
    last_head = head == pl.num_programs(3) - 1
    last_block = block == pl.num_programs(2) - 1
    windowed = plan.reach is not None
    dot_of = dict(precision=plan.precision)

    if windowed:
        dk_sum, dv_sum = sums_refs
    else:  # the outputs hold a head's keys from its first block of queries to its last
        dk_sum, dv_sum = dk_ref.at[0, 0], dv_ref.at[0, 0]

    @pl.when(first_step)
    def _():
        for ref in (dk_sum, dv_sum):
            ref[...] = jnp.zeros_like(ref)

    if windowed:

        @pl.when((block > 0) & (head == 0))
        def _():
            for ref in (dk_sum, dv_sum):
                if plan.reach:
                    ref[: plan.reach] = ref[plan.block :]
                ref[plan.reach :] = jnp.zeros((plan.block, ref.shape[1]), ref.dtype)

    def visit(visit: _Visit):
        for part in visit.parts:
            columns = part.columns
            logits, slope = _logits(q_ref, k_ref, start_ref, plan, visit, part)
            p = jnp.exp2(logits - lse_ref[0, 0, :, columns])
            dp = mxu.dot(v_ref[0, 0, visit.keys(part)], do_ref[0, 0, columns], mxu.NT, **dot_of)
            ds = p * (dp - delta_ref[0, 0, :, columns])
            if slope is not None:
                ds *= slope
            p_ref[part.pairs] = p.astype(p_ref.dtype)
            ds_ref[part.pairs] = ds.astype(ds_ref.dtype)
        # By the diagonal tiles of queries meet unequal numbers of keys, and cut by keys the products
        # are wider. Elsewhere a unit of queries at a time is fewer bundles than all of them.
        for part in _by_keys(visit.parts) if visit.own else visit.parts:
            rows, queries = visit.keys(part), part.columns
            dv_sum[rows] += mxu.dot(p_ref[part.pairs], do_ref[0, 0, queries], mxu.NN, **dot_of)
            dk_sum[rows] += mxu.dot(ds_ref[part.pairs], q_ref[0, 0, queries], mxu.NN, **dot_of)
        for part in visit.parts:
            dq = mxu.dot(kt_ref[0, 0, :, visit.keys(part)], ds_ref[part.pairs], mxu.NN, **dot_of)
            if visit.own:
                acc_ref[:, part.columns] = dq
            else:
                acc_ref[:, part.columns] += dq

    @pl.when(visits < 0)
    def _():
        dqt_ref[...] = jnp.zeros_like(dqt_ref)

    @pl.when(visits >= 0)
    def _():
        visit(_own_visit(plan, block))
        if not plan.band:

            def earlier(number, carry, is_clear):
                visit(_earlier_visit(plan, block, number, is_clear))
                return carry

            _for_earlier(clear, visits, earlier)
        dqt_ref[0, 0] = (acc_ref[...] * plan.scale).astype(dqt_ref.dtype)

    @pl.when(last_head)
    def _():
        if windowed:  # no later block sees the oldest C keys
            dk_ref[0, 0] = dk_sum[: plan.block] * plan.scale
            dv_ref[0, 0] = dv_sum[: plan.block]

    if not windowed:

        @pl.when(last_head & last_block)
        def _():
            dk_sum[...] *= plan.scale


def _logits(q_ref, k_ref, start_ref, plan: Plan, visit: _Visit, part: Part):
    """As `_masked`, of all keys of a part at once."""
    return _masked(_products(q_ref, k_ref, plan, visit, part), start_ref, plan, visit, part)


def _products(q_ref, k_ref, plan: Plan, visit: _Visit, part: Part):
    queries = q_ref[0, 0, part.columns]
    return mxu.dot(k_ref[0, 0, visit.keys(part)], queries, mxu.NT, precision=plan.precision)


def _masked(products, start_ref, plan: Plan, visit: _Visit, part: Part):
    """Masked logits times log2(e), and d capped / d plain logits where there is a cap."""
    slope = None
    if plan.soft_cap is None:
        # Scaled here, in float32: a scaled bf16 query would be rounded once more.
        logits = products * (plan.scale * LOG2E)
    else:
        tanh = jnp.tanh(products * (plan.scale / plan.soft_cap))
        logits, slope = tanh * (plan.soft_cap * LOG2E), 1 - tanh * tanh
    if visit.clear:
        return logits, slope
    start = start_ref[0, :, part.columns] - visit.position
    if not visit.own:
        return _from(logits, start, part.key), slope
    earlier, diagonal = logits[: -plan.tile], logits[-plan.tile :]
    first = part.rows - plan.tile
    diagonal = _from(diagonal, start, part.key + first)
    key = jax.lax.broadcasted_iota(jnp.int32, diagonal.shape, 0)
    query = jax.lax.broadcasted_iota(jnp.int32, diagonal.shape, 1)
    diagonal = jnp.where(key <= query, diagonal, NEGATIVE)
    if not first:
        return diagonal, slope
    return jnp.concatenate([_from(earlier, start, part.key), diagonal], axis=0), slope


def _from(logits, start, first: int):
    """Keys before each query's start masked; row 0 of `logits` is the visit's key `first`."""
    # One row of registers is compared with a constant per register: no register holds key numbers.
    rows = _registers(logits)
    ahead = start - jax.lax.broadcasted_iota(jnp.int32, rows.shape[1:], 0)
    seen = ahead[None] <= SUBLANES * jax.lax.broadcasted_iota(jnp.int32, rows.shape, 0) + first
    return jnp.where(seen, rows, NEGATIVE).reshape(logits.shape)


def _registers(x):
    """(rows, columns) -> (rows / 8, 8, columns): the first axis counts whole registers."""
    return x.reshape(-1, SUBLANES, x.shape[1])


def _own_visit(plan: Plan, block) -> _Visit:
    if plan.reach is None:
        row = pl.multiple_of(plan.front + block * plan.block, plan.block)
    else:
        row = 0 if plan.band else plan.reach
    return _Visit(plan.own(), row, plan.own_first, own=True)


def _earlier_visit(plan: Plan, block, number, clear: bool) -> _Visit:
    """The block of keys that stands `number` blocks before the queries'."""
    own_row = plan.reach
    if plan.reach is None:
        own_row = plan.front + block * plan.block
    row = pl.multiple_of(own_row - number * plan.block, plan.block)
    return _Visit(plan.before(), row, -number * plan.block, clear=clear)


def _for_earlier(clear, visits, body) -> None:
    """`body(number, carry, is_clear)` of the blocks before, the nearest first."""
    jax.lax.fori_loop(1, clear + 1, lambda n, c: body(n, c, True), 0)
    jax.lax.fori_loop(clear + 1, visits + 1, lambda n, c: body(n, c, False), 0)


def _by_keys(parts: list[Part]):
    """The same pairs the other way round: slices of keys, and the queries that meet them all."""
    edges = sorted({p.key for p in parts} | {p.key + p.rows for p in parts})
    for first, last in zip(edges, edges[1:]):
        meet = [p for p in parts if p.key <= first and last <= p.key + p.rows]
        query = meet[0].query
        yield Part(query, meet[-1].columns.stop - query, first, last - first)
