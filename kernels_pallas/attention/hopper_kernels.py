"""The bodies of the Hopper attention kernels: what one block of the grid does.

Two warpgroups multiply, 64 rows each; a third fetches tiles ahead of them into `stages` slots of
shared memory. `ready` says that a slot is full, `free` that both have read it. Logits are kept times
log2(e), so that the chip's own power of two makes the probabilities.

Letters: C queries or keys of a block, t of a fetched tile, D the padded head size.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels_pallas import mosaic_gpu as mg
from kernels_pallas.attention.intervals import LOWEST_MAX, NEGATIVE, NOTHING
from kernels_pallas.mosaic_gpu import LOG2E

MULTIPLIERS = 2  # warpgroups that multiply
FETCHER = MULTIPLIERS  # the one that fetches
BF16 = jnp.bfloat16


class Plan(NamedTuple):
    """One kernel's tiles, and the options of the call.

    A block of the grid holds `block` queries (keys, in `dkeys`), `rows` of them in each warpgroup
    that multiplies, and fetches tiles of `tile` keys (queries) into `stages` slots; `slots` keys
    stand before the first query.
    """

    rows: int
    tile: int
    stages: int
    slots: int
    group: int
    scale: float
    soft_cap: float | None

    @property
    def block(self) -> int:
        return self.rows * MULTIPLIERS


class Visits(NamedTuple):
    """Which tiles a block visits: from tile `first` on, `low` that need a mask, `clear` that need
    none, and the rest of `masked` that need one."""

    first: Any
    low: Any
    clear: Any
    masked: Any

    @classmethod
    def read(cls, ref, batch, block):
        return cls(*(ref[batch, block, i] for i in range(len(cls._fields))))

    def each(self, turns: int, body, carry=None):
        """`carry = body(step, turn, tile, is_masked, carry)` of all visits, for each of `turns`
        heads: first those with a mask, then those without, `step` counting them all."""

        def of_kind(is_masked, number, before, carry):
            def one(turn, visit, carry):
                skipped = jnp.where(visit < self.low, 0, self.clear) if is_masked else self.low
                step = before + turn * number + visit
                return body(step, turn, self.first + visit + skipped, is_masked, carry)

            def head(turn, carry):
                return jax.lax.fori_loop(0, number, functools.partial(one, turn), carry)

            # One loop inside the other: one alone would divide at every step.
            return head(0, carry) if turns == 1 else jax.lax.fori_loop(0, turns, head, carry)

        carry = of_kind(True, self.masked, 0, carry)
        return of_kind(False, self.clear, turns * self.masked, carry)


def forward(
    visits_ref,
    sinks_ref,
    start_ref,
    q_ref,
    k_ref,
    v_ref,
    out_ref,
    lse_ref,
    *,
    q_tile,
    k_tile,
    v_tile,
    start,
    lse,
    q_ready,
    ready,
    free,
    plan: Plan,
    has_sinks: bool,
):
    """out (C, D) and lse (C,) of a block of queries of one head, the last blocks first."""
    head, batch = mg.index("head"), mg.index("batch")
    block = visits_ref.shape[1] - 1 - mg.index("block")
    visits, worker = Visits.read(visits_ref, batch, block), mg.warpgroup()

    @pl.when(worker == FETCHER)
    def _():
        kv_head = jax.lax.div(head, plan.group)
        pairs = (k_ref, k_tile), (v_ref, v_tile)
        _fetch_keys(visits, pairs, batch, kv_head, ready, free, plan)

    @pl.when(worker < MULTIPLIERS)
    def _():
        mg.registers(240, more=True)
        first = block * plan.block + worker * plan.rows
        rows = pl.ds(first, plan.rows)
        mg.load(q_ref.at[batch, rows, head], q_tile.at[worker], q_ready.at[worker])
        mg.load(start_ref.at[batch, rows], start.at[worker], q_ready.at[worker])
        mg.wait(q_ready.at[worker])
        starts = mg.of_rows(start.at[worker])
        widths = _widths(starts, mg.iota_of_rows(plan.rows) + (first + plan.slots))
        size = q_tile.shape[-1]

        def visit(step, turn, tile, masked, carry):
            out, total, top = carry
            slot = _slot(step, plan.stages)
            mg.wait(ready.at[slot])
            raw = mg.matmul(q_tile.at[worker], mg.transposed(k_tile.at[slot]))
            logits, _ = _capped(raw, plan)
            if masked:
                seen = _seen(starts, widths, tile * plan.tile, logits.shape)
                logits = jnp.where(seen, logits, NEGATIVE)
            higher = jnp.maximum(top, jnp.max(logits, axis=1))
            shrink = jnp.exp2(top - higher)
            p = jnp.exp2(logits - mg.along_rows(higher, logits.shape))
            total = total * shrink + jnp.sum(p, axis=1)
            out *= mg.along_rows(shrink, out.shape)
            (out,) = mg.matmuls((out, p.astype(BF16), v_tile.at[slot]))
            mg.arrive(free.at[slot])
            return out, total, higher

        carry = (
            mg.zeros((plan.rows, size)),
            mg.full((plan.rows,), 0.0),
            mg.full((plan.rows,), LOWEST_MAX),
        )
        out, total, top = visits.each(1, visit, carry)
        if has_sinks:
            sink = mg.full((plan.rows,), 1.0) * (sinks_ref[head] * LOG2E)
            higher = jnp.maximum(top, sink)
            shrink = jnp.exp2(top - higher)
            out, total = out * mg.along_rows(shrink, out.shape), total * shrink
            top, total = higher, total + jnp.exp2(sink - higher)
        empty = starts >= NOTHING
        total = jnp.where(empty, 1.0, total)
        kept = jnp.where(empty, 0.0, 1.0 / total)
        q_tile.at[worker][...] = (out * mg.along_rows(kept, out.shape)).astype(BF16)
        lse.at[worker][...] = jnp.where(empty, NEGATIVE, (top + jnp.log2(total)) * (1 / LOG2E))
        mg.publish()
        mg.store(q_tile.at[worker], out_ref.at[batch, rows, head])
        mg.store(lse.at[worker], lse_ref.at[batch, head, rows])
        mg.wait_for_stores()


def dqueries(
    visits_ref,
    start_ref,
    q_ref,
    do_ref,
    k_ref,
    v_ref,
    lse_ref,
    delta_ref,
    dq_ref,
    *,
    q_tile,
    do_tile,
    k_tile,
    v_tile,
    start,
    lse,
    delta,
    q_ready,
    ready,
    free,
    plan: Plan,
):
    """dq (C, D) of a block of queries of one head; `lse` is times log2(e)."""
    head, batch = mg.index("head"), mg.index("batch")
    block = visits_ref.shape[1] - 1 - mg.index("block")
    visits, worker = Visits.read(visits_ref, batch, block), mg.warpgroup()

    @pl.when(worker == FETCHER)
    def _():
        kv_head = jax.lax.div(head, plan.group)
        pairs = (k_ref, k_tile), (v_ref, v_tile)
        _fetch_keys(visits, pairs, batch, kv_head, ready, free, plan)

    @pl.when(worker < MULTIPLIERS)
    def _():
        mg.registers(240, more=True)
        first = block * plan.block + worker * plan.rows
        rows, at = pl.ds(first, plan.rows), q_ready.at[worker]
        mg.load(q_ref.at[batch, rows, head], q_tile.at[worker], at)
        mg.load(do_ref.at[batch, rows, head], do_tile.at[worker], at)
        mg.load(start_ref.at[batch, rows], start.at[worker], at)
        mg.load(lse_ref.at[batch, head, rows], lse.at[worker], at)
        mg.load(delta_ref.at[batch, head, rows], delta.at[worker], at)
        mg.wait(at)
        shape = plan.rows, plan.tile
        starts = mg.of_rows(start.at[worker])
        widths = _widths(starts, mg.iota_of_rows(plan.rows) + (first + plan.slots))
        lses, deltas = mg.of_rows(lse.at[worker]), mg.of_rows(delta.at[worker])

        def visit(step, turn, tile, masked, dq):
            slot = _slot(step, plan.stages)
            mg.wait(ready.at[slot])
            raw, dp = mg.matmuls(
                (None, q_tile.at[worker], mg.transposed(k_tile.at[slot])),
                (None, do_tile.at[worker], mg.transposed(v_tile.at[slot])),
            )
            logits, slope = _capped(raw, plan)
            p = jnp.exp2(logits - mg.along_rows(lses, shape))
            if masked:
                seen = _seen(starts, widths, tile * plan.tile, shape)
                p = jnp.where(seen, p, 0.0)
            ds = p * (dp - mg.along_rows(deltas, shape))
            ds = ds if slope is None else ds * slope
            (dq,) = mg.matmuls((dq, ds.astype(BF16), k_tile.at[slot]))
            mg.arrive(free.at[slot])
            return dq

        dq = visits.each(1, visit, mg.zeros((plan.rows, q_tile.shape[-1])))
        q_tile.at[worker][...] = (dq * plan.scale).astype(BF16)
        mg.publish()
        mg.store(q_tile.at[worker], dq_ref.at[batch, rows, head])
        mg.wait_for_stores()


def dkeys(
    visits_ref,
    start_ref,
    q_ref,
    do_ref,
    k_ref,
    v_ref,
    lse_ref,
    delta_ref,
    dk_ref,
    dv_ref,
    *,
    q_tile,
    do_tile,
    k_tile,
    v_tile,
    start,
    lse,
    delta,
    k_ready,
    ready,
    free,
    plan: Plan,
):
    """dk and dv (C, D) of a block of keys of one key/value head, over the heads of its group."""
    kv_head, batch, block = mg.index("head"), mg.index("batch"), mg.index("block")
    visits, worker = Visits.read(visits_ref, batch, block), mg.warpgroup()

    @pl.when(worker == FETCHER)
    def _():
        def copies(turn, tile):
            head, queries = kv_head * plan.group + turn, pl.ds(tile * plan.tile, plan.tile)
            return (
                (q_ref.at[batch, queries, head], q_tile),
                (do_ref.at[batch, queries, head], do_tile),
                (start_ref.at[batch, queries], start),
                (lse_ref.at[batch, head, queries], lse),
                (delta_ref.at[batch, head, queries], delta),
            )

        _fetch(visits, plan.group, copies, ready, free, plan.stages)

    @pl.when(worker < MULTIPLIERS)
    def _():
        mg.registers(240, more=True)
        first = block * plan.block + worker * plan.rows
        rows = pl.ds(first, plan.rows)
        mg.load(k_ref.at[batch, rows, kv_head], k_tile.at[worker], k_ready.at[worker])
        mg.load(v_ref.at[batch, rows, kv_head], v_tile.at[worker], k_ready.at[worker])
        mg.wait(k_ready.at[worker])
        shape, size = (plan.rows, plan.tile), k_tile.shape[-1]

        def visit(step, turn, tile, masked, carry):
            dk, dv = carry
            slot = _slot(step, plan.stages)
            mg.wait(ready.at[slot])
            raw, dp = mg.matmuls(
                (None, k_tile.at[worker], mg.transposed(q_tile.at[slot])),
                (None, v_tile.at[worker], mg.transposed(do_tile.at[slot])),
            )
            logits, slope = _capped(raw, plan)
            p = jnp.exp2(logits - mg.along_columns(mg.of_columns(lse.at[slot]), shape))
            if masked:
                starts = mg.of_columns(start.at[slot])
                own = mg.iota_of_columns(plan.tile) + (tile * plan.tile + plan.slots)
                widths = mg.along_columns(_widths(starts, own), shape)
                distance = mg.iota(shape, 0) - mg.along_columns(starts - first, shape)
                p = jnp.where(_within(distance, widths), p, 0.0)
            ds = p * (dp - mg.along_columns(mg.of_columns(delta.at[slot]), shape))
            ds = ds if slope is None else ds * slope
            mg.publish()  # the numbers of columns are read
            dk, dv = mg.matmuls(
                (dk, ds.astype(BF16), q_tile.at[slot]), (dv, p.astype(BF16), do_tile.at[slot])
            )
            mg.arrive(free.at[slot])
            return dk, dv

        sums = mg.zeros((plan.rows, size)), mg.zeros((plan.rows, size))
        dk, dv = visits.each(plan.group, visit, sums)
        k_tile.at[worker][...] = (dk * plan.scale).astype(BF16)
        v_tile.at[worker][...] = dv.astype(BF16)
        mg.publish()
        mg.store(k_tile.at[worker], dk_ref.at[batch, rows, kv_head])
        mg.store(v_tile.at[worker], dv_ref.at[batch, rows, kv_head])
        mg.wait_for_stores()


def _fetch_keys(visits: Visits, pairs, batch, kv_head, ready, free, plan: Plan) -> None:
    """Brings the tiles of keys and of values that a block of queries visits; `pairs` are source and
    slotted target of both."""

    def copies(turn, tile):
        keys = pl.ds(tile * plan.tile, plan.tile)
        return [(ref.at[batch, keys, kv_head], tiles) for ref, tiles in pairs]

    _fetch(visits, 1, copies, ready, free, plan.stages)


def _fetch(visits: Visits, turns: int, copies, ready, free, stages: int) -> None:
    """What the fetching warpgroup does: the `copies(turn, tile)`, pairs of source and slotted
    target, of each visit."""
    mg.registers(24, more=False)

    def fetch(step, turn, tile, masked, carry):
        slot = _slot(step, stages)

        @pl.when(step >= stages)
        def _():
            mg.wait(free.at[slot])

        for source, target in copies(turn, tile):
            mg.load(source, target.at[slot], ready.at[slot])
        return carry

    visits.each(turns, fetch)
    for slot in range(stages):  # what was read last

        @pl.when(slot < turns * (visits.masked + visits.clear))
        def _(slot=slot):
            mg.wait(free.at[slot])


def _slot(step, stages: int):
    return jax.lax.rem(step, jnp.int32(stages))


def _capped(raw, plan: Plan):
    """Logits times log2(e), and d capped / d plain logits where there is a cap."""
    if plan.soft_cap is None:
        # Scaled here, in float32: a scaled bf16 query would be rounded once more.
        return raw * (plan.scale * LOG2E), None
    # The chip's own tanh is good to 11 bits; this one to those of its power of two.
    tanh = 1.0 - 2.0 / (1.0 + jnp.exp2(raw * (2 * LOG2E * plan.scale / plan.soft_cap)))
    return tanh * (plan.soft_cap * LOG2E), 1.0 - tanh * tanh


def _widths(starts, own):
    """Of how many keys, from its start on, the interval of each query is: 0 where it sees none."""
    return jnp.maximum(own + 1 - starts, 0)


def _within(distances, widths):
    """Which keys, so far from a query's start, are in its interval."""
    # Unsigned, one comparison tells of both ends and holds fewer numbers through the loop.
    return distances.astype(jnp.uint32) < widths.astype(jnp.uint32)


def _seen(starts, widths, key, shape):
    """Which keys, from number `key` on, the queries of rows see."""
    distances = mg.iota(shape, 1) - mg.along_rows(starts - key, shape)
    return _within(distances, mg.along_rows(widths, shape))
