"""The bodies of the Hopper attention kernels: what one block of the grid computes.

Two warpgroups multiply, 64 rows each; a third loads tiles ahead of them into `stages` slots of shared
memory. The barrier `ready` means that a slot is full, `free` that both have read it. Logits are
multiplied by log2(e), so that probabilities are powers of two, which the chip computes directly. The
online softmax has its usual names: running maximum `m`, normaliser `l`, accumulator `out`, and the
factor `alpha` that rescales `l` and `out` when `m` grows.

A block has C queries or keys; D is the padded head size. What forget gates add to the logits is in
`hopper_gates.py`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kernels_pallas import mosaic_gpu as mg
from kernels_pallas.attention.hopper_gates import OwnKeys, OwnQueries
from kernels_pallas.attention.intervals import LOWEST_MAX, NEGATIVE, NO_KEYS
from kernels_pallas.mosaic_gpu import LOG2E

MULTIPLIERS = 2  # warpgroups that multiply
LOADER = MULTIPLIERS  # the warpgroup that loads tiles
BF16 = jnp.bfloat16


class TilePlan(NamedTuple):
    """The tile sizes of one kernel and the options of the call, all static.

    Attributes:
      rows: queries (keys, in `dkeys`) of one warpgroup that multiplies.
      tile: keys (queries, in `dkeys`) of a loaded tile.
      stages: tiles in shared memory.
      slots: keys before the first query.
      group: query heads per key/value head.
      forget: whether logits have sums of log forget gates added. A kernel then has more arguments.
    """

    rows: int
    tile: int
    stages: int
    slots: int
    group: int
    scale: float
    soft_cap: float | None
    forget: bool = False

    @property
    def block(self) -> int:
        return self.rows * MULTIPLIERS


class TileRanges(NamedTuple):
    """The tiles that a block visits: `masked` + `unmasked` of them, from tile `first` on.

    The first `masked_before` tiles need a mask, the next `unmasked` need none, the rest need one.
    """

    first: Any
    masked_before: Any
    unmasked: Any
    masked: Any

    @classmethod
    def read(cls, ref, batch, block):
        return cls(*(ref[batch, block, i] for i in range(len(cls._fields))))

    def each(self, heads: int, body, carry=None, finish=None):
        """`carry = body(step, member, tile, is_masked, carry)` for all tiles, for each of `heads`
        heads of a group: first the tiles with a mask, then those without. `step` counts all. After
        the tiles of one kind and head `carry = finish(is_masked, member, carry)`."""

        def of_kind(is_masked, number, before, carry):
            def one(member, index, carry):
                skipped = (
                    jnp.where(index < self.masked_before, 0, self.unmasked)
                    if is_masked
                    else self.masked_before
                )
                step = before + member * number + index
                return body(step, member, self.first + index + skipped, is_masked, carry)

            def one_head(member, carry):
                carry = jax.lax.fori_loop(0, number, functools.partial(one, member), carry)
                return carry if finish is None else finish(is_masked, member, carry)

            # Nested loops: a single loop would need a division at every step.
            if heads == 1:
                return one_head(0, carry)
            return jax.lax.fori_loop(0, heads, one_head, carry)

        carry = of_kind(True, self.masked, 0, carry)
        return of_kind(False, self.unmasked, heads * self.masked, carry)


def forward(
    tile_ranges_ref,
    sinks_ref,
    start_ref,
    q_ref,
    k_ref,
    v_ref,
    *refs,
    q_tile,
    k_tile,
    v_tile,
    start,
    lse,
    q_ready,
    ready,
    free,
    plan: TilePlan,
    has_sinks: bool,
    q_gates=None,
    k_gates=None,
):
    """out (C, D) and lse (C,) of a query block of one head, the last blocks first.

    With forget gates there are two more operands, the sums of log-gates of queries and of keys, and
    their tiles `q_gates` and `k_gates`; so in the other kernels.
    """
    *gate_refs, out_ref, lse_ref = refs
    head, batch = mg.index("head"), mg.index("batch")
    block = tile_ranges_ref.shape[1] - 1 - mg.index("block")
    tile_ranges, worker = TileRanges.read(tile_ranges_ref, batch, block), mg.warpgroup()

    @pl.when(worker == LOADER)
    def _():
        pairs = (k_ref, k_tile), (v_ref, v_tile)
        gates = [(ref, k_gates) for ref in gate_refs[1:]]
        _load_key_tiles(tile_ranges, pairs, gates, batch, head, ready, free, plan)

    @pl.when(worker < MULTIPLIERS)
    def _():
        mg.registers(240, more=True)
        first = block * plan.block + worker * plan.rows
        rows = pl.ds(first, plan.rows)
        mg.load(q_ref.at[batch, rows, head], q_tile.at[worker], q_ready.at[worker])
        mg.load(start_ref.at[batch, rows], start.at[worker], q_ready.at[worker])
        for ref in gate_refs[:1]:
            mg.load(ref.at[batch, head, :, rows], q_gates.at[worker], q_ready.at[worker])
        mg.wait(q_ready.at[worker])
        gates = OwnQueries.read(q_gates.at[worker]) if plan.forget else None
        starts = mg.of_rows(start.at[worker])
        widths = _widths(starts, mg.iota_of_rows(plan.rows) + (first + plan.slots))
        size = q_tile.shape[-1]

        def add_tile(step, member, tile, masked, carry):
            out, l, m = carry
            slot = _slot(step, plan.stages)
            mg.wait(ready.at[slot])
            raw = mg.matmul(q_tile.at[worker], mg.transposed(k_tile.at[slot]))
            logits, _ = _capped(raw, plan)
            if gates is not None:
                logits = gates.add(logits, k_gates.at[slot], masked)
            if masked:
                seen = _seen(starts, widths, tile * plan.tile, logits.shape)
                logits = jnp.where(seen, logits, NEGATIVE)
            since = None if gates is None or masked else gates.since
            highest = jnp.max(logits, axis=1)
            m_new = jnp.maximum(m, highest if since is None else highest + since)
            alpha = jnp.exp2(m - m_new)
            own_m = m_new if since is None else m_new - since
            p = jnp.exp2(logits - mg.along_rows(own_m, logits.shape))
            l = l * alpha + jnp.sum(p, axis=1)
            out *= mg.along_rows(alpha, out.shape)
            if plan.forget:
                mg.publish()  # the slot's gates have been read
            (out,) = mg.matmuls((out, p.astype(BF16), v_tile.at[slot]))
            mg.arrive(free.at[slot])
            return out, l, m_new

        carry = (
            mg.zeros((plan.rows, size)),
            mg.full((plan.rows,), 0.0),
            mg.full((plan.rows,), LOWEST_MAX),
        )
        out, l, m = tile_ranges.each(1, add_tile, carry)
        if has_sinks:
            sink = mg.full((plan.rows,), 1.0) * (sinks_ref[head] * LOG2E)
            m_new = jnp.maximum(m, sink)
            alpha = jnp.exp2(m - m_new)
            out, l = out * mg.along_rows(alpha, out.shape), l * alpha
            m, l = m_new, l + jnp.exp2(sink - m_new)
        empty = starts >= NO_KEYS
        l = jnp.where(empty, 1.0, l)
        kept = jnp.where(empty, 0.0, 1.0 / l)
        q_tile.at[worker][...] = (out * mg.along_rows(kept, out.shape)).astype(BF16)
        lse.at[worker][...] = jnp.where(empty, NEGATIVE, (m + jnp.log2(l)) * (1 / LOG2E))
        mg.publish()
        mg.store(q_tile.at[worker], out_ref.at[batch, rows, head])
        mg.store(lse.at[worker], lse_ref.at[batch, head, rows])
        mg.wait_for_stores()


def dqueries(
    tile_ranges_ref,
    start_ref,
    q_ref,
    do_ref,
    k_ref,
    v_ref,
    lse_ref,
    delta_ref,
    *refs,
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
    plan: TilePlan,
    q_gates=None,
    k_gates=None,
):
    """dq (C, D) of a query block of one head; `lse` is multiplied by log2(e).

    With forget gates also the sum of d logits of each query (C,).
    """
    gate_refs, (dq_ref, *drow_refs) = refs[: 2 * plan.forget], refs[2 * plan.forget :]
    head, batch = mg.index("head"), mg.index("batch")
    block = tile_ranges_ref.shape[1] - 1 - mg.index("block")
    tile_ranges, worker = TileRanges.read(tile_ranges_ref, batch, block), mg.warpgroup()

    @pl.when(worker == LOADER)
    def _():
        pairs = (k_ref, k_tile), (v_ref, v_tile)
        gates = [(ref, k_gates) for ref in gate_refs[1:]]
        _load_key_tiles(tile_ranges, pairs, gates, batch, head, ready, free, plan)

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
        for ref in gate_refs[:1]:
            mg.load(ref.at[batch, head, :, rows], q_gates.at[worker], at)
        mg.wait(at)
        gates = OwnQueries.read(q_gates.at[worker]) if plan.forget else None
        shape = plan.rows, plan.tile
        starts = mg.of_rows(start.at[worker])
        widths = _widths(starts, mg.iota_of_rows(plan.rows) + (first + plan.slots))
        lses, deltas = mg.of_rows(lse.at[worker]), mg.of_rows(delta.at[worker])

        def add_tile(step, member, tile, masked, carry):
            dq, *drow = carry
            slot = _slot(step, plan.stages)
            mg.wait(ready.at[slot])
            raw, dp = mg.matmuls(
                (None, q_tile.at[worker], mg.transposed(k_tile.at[slot])),
                (None, do_tile.at[worker], mg.transposed(v_tile.at[slot])),
            )
            logits, slope = _capped(raw, plan)
            own_lses = lses
            if gates is not None:
                logits = gates.add(logits, k_gates.at[slot], masked)
                own_lses = lses if masked else lses - gates.since
            p = jnp.exp2(logits - mg.along_rows(own_lses, shape))
            if masked:
                seen = _seen(starts, widths, tile * plan.tile, shape)
                p = jnp.where(seen, p, 0.0)
            ds = p * (dp - mg.along_rows(deltas, shape))
            drow = [total + jnp.sum(ds, axis=1) for total in drow]
            ds = ds if slope is None else ds * slope
            if plan.forget:
                mg.publish()  # the slot's gates have been read
            (dq,) = mg.matmuls((dq, ds.astype(BF16), k_tile.at[slot]))
            mg.arrive(free.at[slot])
            return dq, *drow

        sums = mg.zeros((plan.rows, q_tile.shape[-1])), *[mg.full((plan.rows,), 0.0)] * plan.forget
        dq, *drow = tile_ranges.each(1, add_tile, sums)
        q_tile.at[worker][...] = (dq * plan.scale).astype(BF16)
        for total in drow:
            lse.at[worker][...] = total
        mg.publish()
        for ref in drow_refs:
            mg.store(lse.at[worker], ref.at[batch, head, rows])
        mg.store(q_tile.at[worker], dq_ref.at[batch, rows, head])
        mg.wait_for_stores()


def dkeys(
    tile_ranges_ref,
    start_ref,
    q_ref,
    do_ref,
    k_ref,
    v_ref,
    lse_ref,
    delta_ref,
    *refs,
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
    plan: TilePlan,
    k_gates=None,
    dcolumn=None,
):
    """dk and dv (C, D) of a key block of one key/value head, summed over its group's heads.

    With forget gates also the sums of d logits of each key, for each head of the group and over the
    tiles without and with a mask, (2, C). `lse` is then a pair high + low, less the query's sum of
    log-gates.
    """
    gate_refs, (dk_ref, dv_ref, *dcolumn_refs) = refs[: plan.forget], refs[plan.forget :]
    kv_head, batch, block = mg.index("head"), mg.index("batch"), mg.index("block")
    tile_ranges, worker = TileRanges.read(tile_ranges_ref, batch, block), mg.warpgroup()

    @pl.when(worker == LOADER)
    def _():
        def copies(member, tile):
            head, queries = kv_head * plan.group + member, pl.ds(tile * plan.tile, plan.tile)
            return (
                (q_ref.at[batch, queries, head], q_tile),
                (do_ref.at[batch, queries, head], do_tile),
                (start_ref.at[batch, queries], start),
                (
                    lse_ref.at[batch, head, :, queries]
                    if plan.forget
                    else lse_ref.at[batch, head, queries],
                    lse,
                ),
                (delta_ref.at[batch, head, queries], delta),
            )

        _load_tiles(tile_ranges, plan.group, copies, ready, free, plan.stages)

    @pl.when(worker < MULTIPLIERS)
    def _():
        mg.registers(240, more=True)
        first = block * plan.block + worker * plan.rows
        rows = pl.ds(first, plan.rows)
        mg.load(k_ref.at[batch, rows, kv_head], k_tile.at[worker], k_ready.at[worker])
        mg.load(v_ref.at[batch, rows, kv_head], v_tile.at[worker], k_ready.at[worker])
        heads = pl.ds(kv_head * plan.group, plan.group)
        for ref in gate_refs:
            mg.load(ref.at[batch, heads, :, rows], k_gates.at[worker], k_ready.at[worker])
        mg.wait(k_ready.at[worker])
        shape, size = (plan.rows, plan.tile), k_tile.shape[-1]

        def add_tile(step, member, tile, masked, carry):
            dk, dv, *dcolumns = carry
            slot = _slot(step, plan.stages)
            mg.wait(ready.at[slot])
            raw, dp = mg.matmuls(
                (None, k_tile.at[worker], mg.transposed(q_tile.at[slot])),
                (None, v_tile.at[worker], mg.transposed(do_tile.at[slot])),
            )
            logits, slope = _capped(raw, plan)
            if plan.forget:
                logits = OwnKeys.read(k_gates.at[worker, member]).less(logits, lse.at[slot], masked)
            else:
                logits -= mg.along_columns(mg.of_columns(lse.at[slot]), shape)
            p = jnp.exp2(logits)
            if masked:
                starts = mg.of_columns(start.at[slot])
                own = mg.iota_of_columns(plan.tile) + (tile * plan.tile + plan.slots)
                widths = mg.along_columns(_widths(starts, own), shape)
                distance = mg.iota(shape, 0) - mg.along_columns(starts - first, shape)
                p = jnp.where(_within(distance, widths), p, 0.0)
            ds = p * (dp - mg.along_columns(mg.of_columns(delta.at[slot]), shape))
            dcolumns = [total + jnp.sum(ds, axis=1) for total in dcolumns]
            ds = ds if slope is None else ds * slope
            mg.publish()  # lse, delta and start of the slot have been read
            dk, dv = mg.matmuls(
                (dk, ds.astype(BF16), q_tile.at[slot]), (dv, p.astype(BF16), do_tile.at[slot])
            )
            mg.arrive(free.at[slot])
            return dk, dv, *dcolumns

        def finish(masked, member, carry):
            """Keeps a head's sums of d logits over tiles of one kind; the next ones begin at 0."""
            dk, dv, *dcolumns = carry
            for total in dcolumns:
                dcolumn.at[int(masked), worker, member][...] = total
            return dk, dv, *[none] * plan.forget

        none = mg.full((plan.rows,), 0.0)
        sums = mg.zeros((plan.rows, size)), mg.zeros((plan.rows, size)), *[none] * plan.forget
        dk, dv, *_ = tile_ranges.each(plan.group, add_tile, sums, finish)
        k_tile.at[worker][...] = (dk * plan.scale).astype(BF16)
        v_tile.at[worker][...] = dv.astype(BF16)
        mg.publish()
        for ref in dcolumn_refs:
            for kind in range(2):
                mg.store(dcolumn.at[kind, worker], ref.at[kind, batch, heads, rows])
        mg.store(k_tile.at[worker], dk_ref.at[batch, rows, kv_head])
        mg.store(v_tile.at[worker], dv_ref.at[batch, rows, kv_head])
        mg.wait_for_stores()


def _load_key_tiles(
    tile_ranges: TileRanges, pairs, gates, batch, head, ready, free, plan: TilePlan
) -> None:
    """Loads the tiles that a query block visits: `pairs` are the source and the slots of keys and of
    values, `gates` those of their sums of log-gates."""
    kv_head = jax.lax.div(head, plan.group)

    def copies(member, tile):
        keys = pl.ds(tile * plan.tile, plan.tile)
        tiles = [(ref.at[batch, keys, kv_head], slots) for ref, slots in pairs]
        return tiles + [(ref.at[batch, head, :, keys], slots) for ref, slots in gates]

    _load_tiles(tile_ranges, 1, copies, ready, free, plan.stages)


def _load_tiles(tile_ranges: TileRanges, heads: int, copies, ready, free, stages: int) -> None:
    """The loading warpgroup's work: for each tile the `copies(member, tile)`, pairs of a source and
    its slots."""
    mg.registers(24, more=False)

    def load(step, member, tile, masked, carry):
        slot = _slot(step, stages)

        @pl.when(step >= stages)
        def _():
            mg.wait(free.at[slot])

        for source, target in copies(member, tile):
            mg.load(source, target.at[slot], ready.at[slot])
        return carry

    tile_ranges.each(heads, load)
    for slot in range(stages):  # wait until the last tiles have been read

        @pl.when(slot < heads * (tile_ranges.masked + tile_ranges.unmasked))
        def _(slot=slot):
            mg.wait(free.at[slot])


def _slot(step, stages: int):
    return jax.lax.rem(step, jnp.int32(stages))


def _capped(raw, plan: TilePlan):
    """Logits times log2(e), and d capped / d plain logits if there is a soft cap."""
    if plan.soft_cap is None:
        # Scaled here, in float32: a scaled bf16 query would be rounded once more.
        return raw * (plan.scale * LOG2E), None
    # The chip's tanh has 11 correct bits; this one is as exact as the chip's power of two.
    tanh = 1.0 - 2.0 / (1.0 + jnp.exp2(raw * (2 * LOG2E * plan.scale / plan.soft_cap)))
    return tanh * (plan.soft_cap * LOG2E), 1.0 - tanh * tanh


def _widths(starts, own):
    """The number of keys in each query's interval; 0 if it sees none."""
    return jnp.maximum(own + 1 - starts, 0)


def _within(distances, widths):
    """Whether keys at these distances from a query's start are in its interval."""
    # One unsigned comparison checks both ends and keeps fewer values in registers.
    return distances.astype(jnp.uint32) < widths.astype(jnp.uint32)


def _seen(starts, widths, key, shape):
    """Which keys, from number `key` on, the query of each row sees."""
    distances = mg.iota(shape, 1) - mg.along_rows(starts - key, shape)
    return _within(distances, mg.along_rows(widths, shape))
