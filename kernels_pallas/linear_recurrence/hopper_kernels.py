"""The bodies of the Hopper kernels of the linear recurrence.

With n warpgroups in a block, warpgroup w processes the tiles w, w + n, ... in the order of time. First
it computes the decays and inputs of a tile, element by element, into two tiles of shared memory. Then
it waits for the carry, which the warpgroup of the previous tile writes to shared memory, and runs the
recurrence row by row (128 channels of a token, one per thread) over the second tile.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas import mosaic_gpu as mg
from kernels_pallas.linear_recurrence.blocks import MAX_SLOPE, PADDING, STARTS

CHANNELS = 128


class TileWalk(NamedTuple):
    """The tiles of `rows` tokens, in order, and the number of warpgroups that process them."""

    rows: int
    tiles: int
    warpgroups: int
    reverse: bool

    def own(self, body) -> None:
        """`body(step)` for this warpgroup's steps of the walk."""
        own = mg.warpgroup()
        turns = (self.tiles - own + self.warpgroups - 1) // self.warpgroups
        jax.lax.fori_loop(0, turns, lambda i, _: body(i * self.warpgroups + own), None)

    def tile(self, step):
        return self.tiles - 1 - step if self.reverse else step

    def span(self, step):
        """The tokens of a step's tile."""
        return mg.span(self.tile(step) * self.rows, self.rows)

    def fetch_next(self, step, fetch) -> None:
        """Starts to load this warpgroup's next tile, after it has read the whole current one."""
        mg.publish()

        @mg.when(step + self.warpgroups < self.tiles)
        def _():
            fetch(step + self.warpgroups)

    def scan(self, step, decays, values, carry, turn, after: bool):
        """Runs c = decay c + value over the rows of two tiles, once the carry has arrived. Every row of
        `values` becomes c after the row, or value + c before it if not `after`. Returns the last c."""
        own = mg.warpgroup()
        following = jax.lax.rem(own + 1, self.warpgroups)
        order = range(self.rows)[:: -1 if self.reverse else 1]
        rows = [(r, mg.line(decays.at[r]), mg.line(values.at[r])) for r in order]
        mg.wait(turn.at[own])
        c = mg.line(carry.at[own])
        for r, decay, value in rows:
            if after:
                c = decay * c + value
                values[r] = c
            else:
                value = value + c
                values[r] = value
                c = decay * value

        @mg.when(step + 1 < self.tiles)
        def _():
            carry[following] = c
            mg.arrive(turn.at[following])

        return c


def forward_kernel(
    gated,
    walk,
    a_ref,
    b_ref,
    marks_ref,
    h0_ref,
    h_ref,
    *,
    in_tiles,
    marks,
    decays,
    values,
    carry,
    loaded,
    turn,
):
    own, batch = mg.warpgroup(), mg.index("batch")
    channels = mg.span(mg.index("channels") * CHANNELS, CHANNELS)
    own_marks, decays, values = (x.at[own] for x in (marks, decays, values))
    a_tile, b_tile = (x.at[own] for x in in_tiles)

    def fetch(step):
        tokens = batch, walk.span(step), channels
        mg.load(a_ref.at[tokens], a_tile, loaded.at[own])
        mg.load(b_ref.at[tokens], b_tile, loaded.at[own])
        mg.load(marks_ref.at[batch, walk.span(step)], own_marks, loaded.at[own])

    @mg.when(own == 0)
    def _():
        mg.load(h0_ref.at[batch, channels], carry.at[0], turn.at[0])

    @mg.when(own < walk.tiles)
    def _():
        fetch(own)

    def run(step):
        mg.wait(loaded.at[own])
        mg.wait_for_stores()
        a, b = (mg.spread(x).astype(jnp.float32) for x in (a_tile, b_tile))
        starts, padding = _marked(own_marks)
        if gated:
            a, scale, _ = _gate(a, starts)
            b = scale * b
        decays[...] = jnp.where(starts | padding, 0.0, a)
        values[...] = jnp.where(padding, 0.0, b)
        walk.fetch_next(step, fetch)
        walk.scan(step, decays, values, carry, turn, after=True)
        mg.publish()
        mg.store(values, h_ref.at[batch, walk.span(step), channels])

    walk.own(run)
    mg.wait_for_stores()


def backward_kernel(
    gated,
    walk,
    *refs,
    in_tiles,
    h_tiles,
    marks,
    decays,
    values,
    out_tiles,
    ends,
    carry,
    loaded,
    turn,
):
    *in_refs, h_ref, marks_ref, h0_ref, da_ref, db_ref, dh0_ref = refs
    own, batch = mg.warpgroup(), mg.index("batch")
    channels = mg.span(mg.index("channels") * CHANNELS, CHANNELS)
    own_marks, decays, values, h_tile = (x.at[own] for x in (marks, decays, values, h_tiles))
    tiles, (da_tile, db_tile) = [x.at[own] for x in in_tiles], [x.at[own] for x in out_tiles]
    rows = walk.rows

    def fetch(step):
        for ref, target in zip(in_refs, tiles):
            mg.load(ref.at[batch, walk.span(step), channels], target, loaded.at[own])
        tile = walk.tile(step)
        mg.load(marks_ref.at[batch, walk.span(step)], own_marks, loaded.at[own])
        # h before each token: for all tokens but the first it is in the tile.
        first, others = h_tile.at[0], h_tile.at[mg.span(1, rows - 1)]
        mg.load(h_ref.at[batch, mg.span(tile * rows, rows - 1), channels], others, loaded.at[own])

        @mg.when(tile > 0)
        def _():
            mg.load(h_ref.at[batch, tile * rows - 1, channels], first, loaded.at[own])

        @mg.when(tile == 0)
        def _():
            mg.load(h0_ref.at[batch, channels], first, loaded.at[own])

    @mg.when(own == 0)
    def _():
        carry[0] = jnp.zeros((CHANNELS,), jnp.float32)
        mg.arrive(turn.at[0])

    @mg.when(own < walk.tiles)
    def _():
        fetch(own)

    def run(step):
        mg.wait(loaded.at[own])
        a, *x, dh = (mg.spread(x).astype(jnp.float32) for x in tiles)
        h_before = mg.spread(h_tile)
        starts, padding = _marked(own_marks)
        cut = starts | padding
        db_dg = 1.0
        if gated:
            a, db_dg, slope = _gate(a, starts)
        decays[...] = jnp.where(cut, 0.0, a)
        values[...] = dh
        da_dg = jnp.where(cut, 0.0, h_before)
        if gated:
            da_dg = a * da_dg + slope * x[0]
        walk.fetch_next(step, fetch)
        c = walk.scan(step, decays, values, carry, turn, after=False)
        mg.wait_for_stores()
        g = jnp.where(padding, 0.0, mg.spread(values))
        da_tile[...] = (da_dg * g).astype(da_tile.dtype)
        db_tile[...] = (db_dg * g).astype(db_tile.dtype)
        mg.publish()
        tokens = batch, walk.span(step), channels
        mg.store(da_tile, da_ref.at[tokens])
        mg.store(db_tile, db_ref.at[tokens])

        @mg.when(step == walk.tiles - 1)
        def _():
            ends[...] = c
            mg.publish()
            mg.store(ends, dh0_ref.at[batch, channels])

    walk.own(run)
    mg.wait_for_stores()


def _marked(marks):
    """(starts, padding) of the elements of a tile."""
    marks_RD = mg.spread(marks).astype(jnp.float32)
    return marks_RD == STARTS, marks_RD == PADDING


def _gate(log_a, starts):
    """a, the factor sqrt(1 - a^2) of x and its derivative with respect to log_a, bounded.

    1 - exp(y) is computed by its series near 0, where the difference would lose its digits.
    """
    a, y = jnp.exp(log_a), 2 * log_a
    series = 1 + y * (1 / 6)
    for n in (5, 4, 3, 2):
        series = 1 + (y * (1 / n)) * series
    one_minus_a2 = jnp.where(y > -0.25, -y * series, 1 - a * a)
    root = jax.lax.rsqrt(jnp.maximum(one_minus_a2, 1e-30))
    slope = jnp.minimum(0.5 * root, MAX_SLOPE)
    return (
        a,
        jnp.where(starts, 1.0, one_minus_a2 * root),
        jnp.where(starts, 0.0, -2 * a * a * slope),
    )
