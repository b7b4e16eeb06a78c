"""The bodies of the TPU attention kernels: what one grid step computes for its query block.

A query block has C queries. Keys lie on sublanes and queries on lanes. Logits are multiplied by
log2(e), so that probabilities are powers of two, which the chip computes directly. The online
softmax has its usual names: running maximum `m`, normaliser `l`, accumulator `acc`, and `alpha`, the
factor that rescales `l` and `acc` when `m` grows.

With forget gates, logits lack the sum of log-gates from the block's first query to their own, which is
the same for all keys: it is added to the log-sum-exp. What is left for a key is the sum from it to that
first query, one number for all queries (`Gates`). Where a document begins in the block, its first token
takes the first query's place. In a rectangle the last key does: all queries that see any of its keys see
that one.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels_pallas import mxu
from kernels_pallas.attention import tpu_nonfinite
from kernels_pallas.attention.intervals import LOWEST_MAX, NEGATIVE, NO_KEYS

LOG2E = math.log2(math.e)
SUBLANES = 8
LOWEST_RAISED = (tpu_nonfinite.RAISED - NEGATIVE) / 2 * LOG2E
ROWS_OF_ONES = 16  # rows of a product that sums: what a bfloat16 register holds


class Part(NamedTuple):
    """A rectangle of a query block and a key block: `width` queries from column `query` on, and
    `rows` keys from row `key` on."""

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
        """Parts of `rows` keys each, with the same queries."""
        return [self._replace(key=self.key + at, rows=rows) for at in range(0, self.rows, rows)]


class AttentionPlan(NamedTuple):
    """Block sizes and options of one call, all static.

    Attributes:
      tile: queries and keys of a tile on the diagonal.
      unit: queries and keys of one product with an earlier key block: a side of the matrix unit.
      slice: keys whose logits or weights are computed at once; with more, registers spill.
      block: queries (C) of a query block, keys of an earlier key block.
      reach: keys before its own that a query block loads, a multiple of `tile`, and of `block`
        where it is longer; None is full attention.
      front: tokens of the key arrays before the first query.
      forget: whether logits have sums of log forget gates added. A kernel then has more arguments.
      rectangle: whether all keys are older than the queries: there is no diagonal key block, and
        positions and starts are relative to the end of the keys.

    Each of `block`, `unit` and `slice` is a multiple of the next.
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
    forget: bool = False
    rectangle: bool = False

    @property
    def band(self) -> bool:
        """Whether a query block is multiplied with all the keys in its reach at once."""
        return self.reach is not None and self.reach <= self.block

    @property
    def rows(self) -> int:
        """Keys of a key block."""
        return self.block + self.reach if self.band else self.block

    @property
    def diagonal_start(self) -> int:
        """Position of the diagonal key block's first key, relative to the first query."""
        return -self.reach if self.band else 0

    def diagonal(self) -> list[Part]:
        """The parts of the diagonal key block: the query block's own keys, in a band all in reach."""
        tiles = range(0, self.block, self.tile)
        if self.band:
            return [Part(at, self.tile, at, self.reach + self.tile) for at in tiles]
        return [Part(at, self.tile, 0, at + self.tile) for at in tiles]

    def earlier(self) -> list[Part]:
        """The parts of an earlier key block."""
        return [Part(at, self.unit, 0, self.block) for at in range(0, self.block, self.unit)]

    def schedule(self, value_size: int) -> list[tuple[str, Part]]:
        """The order of the forward pass's work on an earlier key block, part by part: "logits"
        computes logits, "values" adds weighted values to the accumulator.

        The compiler stays near this order, which was found by compiling hundreds. The values of
        two units of queries are added alternately, key by key: a product's result is added to the
        accumulator before the next product of the same queries, and only two units' sums, not a
        whole block's, are in registers. Where a block has more units, value heads of 128 spill
        nothing if the first values are added before the last logits are computed; other sizes
        spill less if they are not.
        """
        units = [part.cut(self.unit) for part in self.earlier()]
        logits = [("logits", part) for unit in units for part in unit]
        pairs = [units[at : at + 2] for at in range(0, len(units), 2)]
        values = [("values", part) for pair in pairs for parts in zip(*pair) for part in parts]
        if len(pairs) == 1 or value_size != 128:
            return logits + values
        return [*logits[:-1], values[0], logits[-1], *values[1:]]


class Gates(NamedTuple):
    """What the kernels read of forget gates.

    Attributes:
      sums: ref (1, 1, 2, keys), high and low part of each key's sum of log-gates.
      since: ref (1, 1, 1, C), each query's sum since the block's first query, or its document's; in a
        rectangle since the last key.
      bias: ref (rows, tile), what a key block adds to its logits, in each column.
    """

    sums: Any
    since: Any
    bias: Any

    def fill(self, plan: AttentionPlan, block, key_block: "_KeyBlock") -> None:
        """Computes the bias of a key block: minus its sums since the block's first query, or last key."""
        before = plan.reach if plan.band else 0
        if plan.rectangle:
            first = self.sums[0, 0, :, _from(plan.front - plan.tile, plan.tile)][:, -1:]
        else:
            own = _diagonal_block(plan, block).row + before
            first = self.sums[0, 0, :, _from(own, plan.tile)][:, :1]
        for at in range(0, plan.rows if key_block.diagonal else plan.block, plan.tile):
            if key_block.diagonal and at >= before:
                row = self.since[0, 0, :, at - before : at - before + plan.tile]
            else:
                since = self.sums[0, 0, :, _from(key_block.row + at, plan.tile)] - first
                row = since[:1] + since[1:]
            square = jnp.broadcast_to(row * -LOG2E, (plan.tile, plan.tile))
            self.bias[at : at + plan.tile] = jnp.transpose(square)

    def add(self, logits, part: Part):
        bias = self.bias[part.key : part.key + part.rows]
        return logits + jnp.concatenate([bias] * (part.width // bias.shape[1]), axis=1)


def _from(row, tokens: int):
    return slice(row, row + tokens) if isinstance(row, int) else pl.ds(row, tokens)


class _KeyBlock(NamedTuple):
    """The keys from row `row` of their array on.

    Attributes:
      position: of the first key, relative to the query block's first query.
      diagonal: whether the query block's own keys are among them.
      unmasked: whether all queries see all of these keys.
    """

    parts: list[Part]
    row: Any
    position: Any
    diagonal: bool = False
    unmasked: bool = False

    def rows_of(self, part: Part):
        return _from(self.row + part.key, part.rows)


def forward(
    earlier_ref,
    unmasked_ref,
    sinks_ref,
    q_ref,
    k_ref,
    vt_ref,
    start_ref,
    *refs,
    plan: AttentionPlan,
    has_sinks: bool,
):
    """out^T (V, C) and lse (1, C) of a query block."""
    gates = None
    if plan.forget:
        sums_ref, since_ref, *refs, bias_ref = refs
        gates = Gates(sums_ref, since_ref, bias_ref)
    out_ref, lse_ref, unclean_ref, found_ref, logits_ref, m_ref, alpha_ref, l_ref, acc_ref = refs
    block = pl.program_id(2)
    index = pl.program_id(0) * pl.num_programs(2) + block
    num_earlier, unmasked = earlier_ref[index], unmasked_ref[index]
    head = pl.program_id(1) * pl.num_programs(3) + pl.program_id(3)
    dot_of = dict(precision=plan.precision)

    def attend_diagonal():
        """(m, l, acc) of each part of the diagonal key block."""
        key_block, maxima, results = _diagonal_block(plan, block), [], []
        if gates is not None:
            gates.fill(plan, block, key_block)
        for part in key_block.parts:
            logits = _logits(q_ref, k_ref, start_ref, plan, key_block, part, gates)[0]
            logits_ref[part.pairs] = logits
            maxima.append(jnp.max(logits, axis=0, keepdims=True))
        for part, m in zip(key_block.parts, maxima):
            m = jnp.maximum(m, LOWEST_MAX)
            p = jnp.exp2(logits_ref[part.pairs] - m)
            values = vt_ref[0, 0, :, key_block.rows_of(part)]
            acc = mxu.dot(values, p.astype(values.dtype), mxu.NN, **dot_of)
            results.append((m, jnp.sum(p, axis=0, keepdims=True), acc))
        return results

    def make_logits(key_block: _KeyBlock, part: Part, maximum):
        """Computes the logits of a part; returns their maximum per sublane. The last part of a key
        block updates the running maximum."""
        columns = part.columns
        products = _products(q_ref, k_ref, plan, key_block, part)
        for cut in part.cut(plan.slice):
            rows = slice(cut.key - part.key, cut.key - part.key + cut.rows)
            logits = _masked(products[rows], start_ref, plan, key_block, cut, gates)[0]
            logits_ref[cut.pairs] = logits
            maximum = jnp.maximum(maximum, jnp.max(_registers(logits), axis=0))
        if part.key + part.rows == plan.block:
            old = m_ref[:, columns]
            m = jnp.maximum(old, jnp.max(maximum, axis=0, keepdims=True))
            m_ref[:, columns] = m
            alpha_ref[:, columns] = jnp.exp2(old - m)
        return maximum

    def add_values(key_block: _KeyBlock, part: Part, weight_sum):
        """Adds the weighted values of a part to the accumulator; returns the sum of the weights per
        sublane. The last part of a key block updates the normaliser."""
        columns, alpha = part.columns, alpha_ref[:, part.columns]
        m, values, weights = m_ref[:, columns], vt_ref[0, 0, :, key_block.rows_of(part)], []
        for cut in part.cut(plan.slice):
            p = jnp.exp2(logits_ref[cut.pairs] - m)
            weight_sum += jnp.sum(_registers(p), axis=0)
            weights.append(p.astype(values.dtype))
        out = mxu.dot(values, jnp.concatenate(weights), mxu.NN, **dot_of)
        before = acc_ref[:, columns]
        acc_ref[:, columns] = (before if part.key else before * alpha) + out
        if part.key + part.rows == plan.block:
            weight_sum = jnp.sum(weight_sum, axis=0, keepdims=True)
            l_ref[:, columns] = l_ref[:, columns] * alpha + weight_sum
        return weight_sum

    def finish(part: Part, m, l, acc):
        columns = part.columns
        if has_sinks:
            sink = jnp.full_like(m, sinks_ref[head] * LOG2E)
            if gates is not None:
                sink -= gates.since[0, 0, :, columns] * LOG2E
            maximum = jnp.maximum(m, sink)
            acc, l = acc * jnp.exp2(m - maximum), l * jnp.exp2(m - maximum)
            m, l = maximum, l + jnp.exp2(sink - maximum)
        empty = start_ref[0, :, columns] == NO_KEYS
        if plan.rectangle:
            empty |= l == 0  # all logits in sight are below LOWEST_MAX: the own key outweighs them
        l = jnp.where(empty, 1, l)
        lse = (m + jnp.log2(l)) / LOG2E
        if gates is not None:
            lse += gates.since[0, 0, :, columns]
        out_ref[0, 0, :, columns] = jnp.where(empty, 0, acc / l).astype(out_ref.dtype)
        lse_ref[0, 0, :, columns] = jnp.where(empty, NEGATIVE, lse)

    if gates is None:
        tpu_nonfinite.mark(plan, block, q_ref, k_ref, vt_ref, unclean_ref, found_ref)
    else:  # `nonfinite.contain_attention` has masked the inputs
        unclean_ref[...] = jnp.zeros_like(unclean_ref)

    @pl.when(num_earlier < 0)
    def _():
        out_ref[...] = jnp.zeros_like(out_ref)
        lse_ref[...] = jnp.full_like(lse_ref, NEGATIVE)

    @pl.when(num_earlier >= 0)
    def _():
        results = () if plan.rectangle else attend_diagonal()
        if plan.band:
            for part, result in zip(plan.diagonal(), results):
                finish(part, *result)
            return
        for part, result in zip(plan.diagonal(), results):
            for ref, value in zip((m_ref, l_ref, acc_ref), result):
                ref[:, part.columns] = value
        if plan.rectangle:
            for ref, value in ((m_ref, LOWEST_MAX), (l_ref, 0.0), (acc_ref, 0.0)):
                ref[...] = jnp.full_like(ref, value)

        def earlier(number, carry, is_unmasked):
            key_block = _earlier_block(plan, block, number, is_unmasked)
            if gates is not None:
                gates.fill(plan, block, key_block)
            shape = SUBLANES, plan.unit
            maximum = {part.query: jnp.full(shape, NEGATIVE) for part in key_block.parts}
            sums = {part.query: jnp.zeros(shape) for part in key_block.parts}
            for task, part in plan.schedule(vt_ref.shape[2]):
                if task == "logits":
                    maximum[part.query] = make_logits(key_block, part, maximum[part.query])
                else:
                    sums[part.query] = add_values(key_block, part, sums[part.query])
            return carry

        _for_earlier(unmasked, num_earlier, earlier)
        for part in plan.diagonal():
            columns = part.columns
            finish(part, m_ref[:, columns], l_ref[:, columns], acc_ref[:, columns])


def backward(
    earlier_ref,
    unmasked_ref,
    unclean_ref,
    q_ref,
    do_ref,
    k_ref,
    kt_ref,
    v_ref,
    start_ref,
    lse_ref,
    delta_ref,
    *refs,
    plan: AttentionPlan,
):
    """dq^T (K, C) of a query block, and its part of dk and dv; `lse` is multiplied by log2(e).

    With forget gates also the sum of d logits of each query, (1, C), and of each key: with a window those
    of this step, otherwise of all steps of the key/value head, (heads, keys). `lse` is then without the
    queries' sums of log-gates (`Gates.since`).
    """
    gates = None
    if plan.forget:
        gate_sums_ref, since_ref, *refs, bias_ref = refs
        dqt_ref, dk_ref, dv_ref, drow_ref, dcolumn_ref, *refs = refs
        gates = Gates(gate_sums_ref, since_ref, bias_ref)
    else:
        dqt_ref, dk_ref, dv_ref, *refs = refs
    p_ref, ds_ref, acc_ref, *sums_refs = refs
    block, head = pl.program_id(2), pl.program_id(3)
    index = pl.program_id(0) * pl.num_programs(2) + block
    num_earlier, unmasked = earlier_ref[index], unmasked_ref[index]
    first_step = (block == 0) & (head == 0)
    last_head = head == pl.num_programs(3) - 1
    last_block = block == pl.num_programs(2) - 1
    windowed = plan.reach is not None
    dot_of = dict(precision=plan.precision)

    if gates is None:
        unclean = unclean_ref[pl.program_id(0) * pl.num_programs(1) + pl.program_id(1)] > 0
        for ref in (q_ref, do_ref, k_ref, kt_ref, v_ref):
            tpu_nonfinite.clean(unclean, ref)

    if windowed:
        dk_sum, dv_sum = sums_refs
    else:  # the outputs stay in VMEM from a head's first query block to its last
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

    if gates is not None:

        @pl.when(first_step if not windowed else head >= 0)
        def _():
            dcolumn_ref[...] = jnp.zeros_like(dcolumn_ref)

    def add_gate_gradients(key_block: _KeyBlock):
        """Adds the sums of d logits, rounded as the products that give dq and dk round them: what a
        query's sum has, keys' sums have too, so that their differences hold no error of other pairs."""
        row = slice(0, 1) if windowed else pl.ds(head, 1)
        for part in _by_key_rows(key_block.parts) if key_block.diagonal else key_block.parts:
            ones = jnp.ones((ROWS_OF_ONES, part.width), ds_ref.dtype)
            sums = mxu.dot(ones, ds_ref[part.pairs], mxu.NT, **dot_of)
            index = (*(0,) * (dcolumn_ref.ndim - 2), row, key_block.rows_of(part))
            dcolumn_ref[index] += sums[:1]
        for part in key_block.parts:
            ones = jnp.ones((ROWS_OF_ONES, part.rows), ds_ref.dtype)
            sums = mxu.dot(ones, ds_ref[part.pairs], mxu.NN, **dot_of)[:1]
            if key_block.diagonal:
                drow_ref[0, 0, :, part.columns] = sums
            else:
                drow_ref[0, 0, :, part.columns] += sums

    def add_gradients(key_block: _KeyBlock):
        if gates is not None:
            gates.fill(plan, block, key_block)
        for part in key_block.parts:
            columns = part.columns
            logits, slope = _logits(q_ref, k_ref, start_ref, plan, key_block, part, gates)
            p = jnp.exp2(logits - lse_ref[0, 0, :, columns])
            dp = mxu.dot(
                v_ref[0, 0, key_block.rows_of(part)], do_ref[0, 0, columns], mxu.NT, **dot_of
            )
            ds = p * (dp - delta_ref[0, 0, :, columns])
            if slope is not None:
                ds *= slope
            p_ref[part.pairs] = p.astype(p_ref.dtype)
            ds_ref[part.pairs] = ds.astype(ds_ref.dtype)
        # On the diagonal, tiles of queries see different numbers of keys: cut by keys, the products
        # are wider. Elsewhere one unit of queries at a time takes fewer bundles than all at once.
        for part in _by_key_rows(key_block.parts) if key_block.diagonal else key_block.parts:
            rows, queries = key_block.rows_of(part), part.columns
            dv_sum[rows] += mxu.dot(p_ref[part.pairs], do_ref[0, 0, queries], mxu.NN, **dot_of)
            dk_sum[rows] += mxu.dot(ds_ref[part.pairs], q_ref[0, 0, queries], mxu.NN, **dot_of)
        for part in key_block.parts:
            dq = mxu.dot(
                kt_ref[0, 0, :, key_block.rows_of(part)], ds_ref[part.pairs], mxu.NN, **dot_of
            )
            if key_block.diagonal:
                acc_ref[:, part.columns] = dq
            else:
                acc_ref[:, part.columns] += dq
        if gates is not None:
            add_gate_gradients(key_block)

    @pl.when(num_earlier < 0)
    def _():
        dqt_ref[...] = jnp.zeros_like(dqt_ref)
        if gates is not None:
            drow_ref[...] = jnp.zeros_like(drow_ref)

    @pl.when(num_earlier >= 0)
    def _():
        if plan.rectangle:
            acc_ref[...] = jnp.zeros_like(acc_ref)
            if gates is not None:
                drow_ref[...] = jnp.zeros_like(drow_ref)
        else:
            add_gradients(_diagonal_block(plan, block))
        if not plan.band:

            def earlier(number, carry, is_unmasked):
                add_gradients(_earlier_block(plan, block, number, is_unmasked))
                return carry

            _for_earlier(unmasked, num_earlier, earlier)
        raised = lse_ref[0, 0] > LOWEST_RAISED
        dqt_ref[0, 0] = jnp.where(raised, jnp.nan, acc_ref[...] * plan.scale).astype(dqt_ref.dtype)

    @pl.when(last_head)
    def _():
        if windowed:  # no later query block sees the oldest C keys
            dk_ref[0, 0] = dk_sum[: plan.block] * plan.scale
            dv_ref[0, 0] = dv_sum[: plan.block]

    if not windowed:

        @pl.when(last_head & last_block)
        def _():
            dk_sum[...] *= plan.scale


def _logits(
    q_ref, k_ref, start_ref, plan: AttentionPlan, key_block: _KeyBlock, part: Part, gates=None
):
    """As `_masked`, for all keys of a part at once."""
    products = _products(q_ref, k_ref, plan, key_block, part)
    return _masked(products, start_ref, plan, key_block, part, gates)


def _products(q_ref, k_ref, plan: AttentionPlan, key_block: _KeyBlock, part: Part):
    queries = q_ref[0, 0, part.columns]
    return mxu.dot(k_ref[0, 0, key_block.rows_of(part)], queries, mxu.NT, precision=plan.precision)


def _masked(products, start_ref, plan: AttentionPlan, key_block: _KeyBlock, part: Part, gates=None):
    """Masked logits times log2(e), and d capped / d plain logits if there is a soft cap."""
    slope = None
    if plan.soft_cap is None:
        # Scaled here, in float32: a scaled bf16 query would be rounded once more.
        logits = products * (plan.scale * LOG2E)
    else:
        tanh = jnp.tanh(products * (plan.scale / plan.soft_cap))
        logits, slope = tanh * (plan.soft_cap * LOG2E), 1 - tanh * tanh
    if gates is not None:
        logits = gates.add(logits, part)
    if key_block.unmasked:
        return logits, slope
    start = start_ref[0, :, part.columns] - key_block.position
    if not key_block.diagonal:
        return _mask_before(logits, start, part.key), slope
    earlier, diagonal = logits[: -plan.tile], logits[-plan.tile :]
    first = part.rows - plan.tile
    diagonal = _mask_before(diagonal, start, part.key + first)
    key = jax.lax.broadcasted_iota(jnp.int32, diagonal.shape, 0)
    query = jax.lax.broadcasted_iota(jnp.int32, diagonal.shape, 1)
    diagonal = jnp.where(key <= query, diagonal, NEGATIVE)
    if not first:
        return diagonal, slope
    return jnp.concatenate([_mask_before(earlier, start, part.key), diagonal], axis=0), slope


def _mask_before(logits, start, first: int):
    """Masks the keys before each query's start; row 0 of `logits` is key `first` of the block."""
    # One row of registers is compared with a constant per register, so that no register has to hold
    # the numbers of keys.
    rows = _registers(logits)
    ahead = start - jax.lax.broadcasted_iota(jnp.int32, rows.shape[1:], 0)
    seen = ahead[None] <= SUBLANES * jax.lax.broadcasted_iota(jnp.int32, rows.shape, 0) + first
    return jnp.where(seen, rows, NEGATIVE).reshape(logits.shape)


def _registers(x):
    """(rows, columns) -> (rows / 8, 8, columns): the first axis counts whole registers."""
    return x.reshape(-1, SUBLANES, x.shape[1])


def _diagonal_block(plan: AttentionPlan, block) -> _KeyBlock:
    if plan.reach is None:
        row = pl.multiple_of(plan.front + block * plan.block, plan.block)
    else:
        row = 0 if plan.band else plan.reach
    return _KeyBlock(plan.diagonal(), row, plan.diagonal_start, diagonal=True)


def _earlier_block(plan: AttentionPlan, block, number, unmasked: bool) -> _KeyBlock:
    """The key block `number` blocks before the diagonal one; in a rectangle from the end of the keys."""
    own_row = plan.reach
    if plan.reach is None:
        own_row = plan.front + (0 if plan.rectangle else block * plan.block)
    row = pl.multiple_of(own_row - number * plan.block, plan.block)
    return _KeyBlock(plan.earlier(), row, -number * plan.block, unmasked=unmasked)


def _for_earlier(unmasked, num_earlier, body) -> None:
    """`body(number, carry, is_unmasked)` for the earlier key blocks, the nearest first."""
    jax.lax.fori_loop(1, unmasked + 1, lambda n, c: body(n, c, True), 0)
    jax.lax.fori_loop(unmasked + 1, num_earlier + 1, lambda n, c: body(n, c, False), 0)


def _by_key_rows(parts: list[Part]):
    """The same pairs cut by keys: parts whose queries all see all of their keys."""
    edges = sorted({p.key for p in parts} | {p.key + p.rows for p in parts})
    for first, last in zip(edges, edges[1:]):
        seen = [p for p in parts if p.key <= first and last <= p.key + p.rows]
        query = seen[0].query
        yield Part(query, seen[-1].columns.stop - query, first, last - first)
