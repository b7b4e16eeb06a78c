"""Attention on Hopper GPUs: query blocks of 128 against the key tiles that they see.

A block of the grid is 128 queries of one head. Two warpgroups multiply, 64 queries each; a third one
loads tiles of keys and values ahead of them with the bulk copy engine. Softmax is online, in
registers. The backward pass is two kernels: one over query blocks for dq, one over blocks of 128 keys
for dk and dv, which also loops over the query heads of the key/value head's group. Every sum is made
by one block in one order; there are no atomic additions. Both kernels recompute probabilities from
the log-sum-exp.

Each query may see one interval of keys, [start, own], as in the chunked form. Before the kernel runs,
XLA computes from the starts which tiles each block visits and which of them need no mask. So work is
proportional to the window and the documents, and one program serves every window. `out` and `lse` are
named "attention_out" and "attention_lse" for remat policies.

With forget gates the kernels read sums of log-gates beside the tiles, and the backward pass also sums
d logits by query and by key: `dqueries` and `dkeys` sum what they themselves compute, in float32.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kernels_pallas import dispatch
from kernels_pallas import mosaic_gpu as mg
from kernels_pallas.attention import forget, intervals
from kernels_pallas.attention import hopper_kernels as kernels
from kernels_pallas.attention.hopper_kernels import MULTIPLIERS, TilePlan
from kernels_pallas.attention.intervals import NO_KEYS
from kernels_pallas.mosaic_gpu import LOG2E

ROWS = 64  # queries (or keys) of a warpgroup: the rows of its products
SIZES = 64  # head sizes are padded to multiples of this
MAX_SIZE = 128


class _Static(NamedTuple):
    scale: float
    soft_cap: float | None
    interpret: Any


class Tiles(NamedTuple):
    """(tokens of a tile, number of tiles in shared memory) of each kernel: keys in the forward
    kernel and in `dqueries`, queries in `dkeys`."""

    forward: tuple[int, int]
    dqueries: tuple[int, int]
    dkeys: tuple[int, int]


#: By padded head size: the largest that fit registers and shared memory.
TILES = {64: Tiles((128, 4), (128, 2), (64, 4)), 128: Tiles((128, 2), (64, 2), (64, 2))}


def attention(
    q_BTHK,
    k_BSGK,
    v_BSGV,
    segment_ids_BS,
    sinks_H,
    log_forget_BSH=None,
    *,
    window,
    scale,
    soft_cap,
    precision,
):
    """(out_BTHV, lse_BTH); the queries are the last T of the S tokens.

    Operands are bfloat16, so products are too, whatever the `precision`.
    """
    slots = k_BSGK.shape[1] - q_BTHK.shape[1]
    start_BT = intervals.starts(segment_ids_BS, slots, window)
    sums = None
    if log_forget_BSH is not None:
        # The pairs would lose their exactness if they were scaled after they were summed.
        sums = forget.cumulative(log_forget_BSH.astype(jnp.float32) * LOG2E, segment_ids_BS)
    static = _Static(scale, soft_cap, dispatch.target().interpret)
    return _attention(q_BTHK, k_BSGK, v_BSGV, sinks_H, sums, start_BT, static)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attention(q_BTHK, k_BSGK, v_BSGV, sinks_H, sums, start_BT, static):
    return _forward(q_BTHK, k_BSGK, v_BSGV, sinks_H, sums, start_BT, static)[0]


def _forward(q_BTHK, k_BSGK, v_BSGV, sinks_H, sums, start_BT, static):
    layout = _Layout(q_BTHK, k_BSGK, v_BSGV, sums, start_BT, static)
    plan = layout.plan(TILES[layout.size].forward)
    sinks = jnp.zeros(layout.heads, jnp.float32) if sinks_H is None else sinks_H.astype(jnp.float32)
    out_BTHV, lse_BHT = layout.launch(
        functools.partial(kernels.forward, plan=plan, has_sinks=sinks_H is not None),
        layout.key_tiles(plan),
        sinks,
        layout.start_BT,
        layout.queries(q_BTHK),
        layout.keys(k_BSGK),
        layout.keys(v_BSGV),
        *layout.gates(),
        name="attention_forward",
        grid=dict(head=layout.heads, block=layout.tokens // layout.block, batch=layout.batch),
        outputs=[layout.shape(layout.tokens, layout.heads), layout.row_shape()],
        scratch=dict(
            q_tile=layout.own_tile(),
            k_tile=layout.tiles(plan),
            v_tile=layout.tiles(plan),
            start=mg.vector((MULTIPLIERS, ROWS), jnp.int32),
            lse=mg.vector((MULTIPLIERS, ROWS)),
            **layout.gate_tiles(q_gates=(MULTIPLIERS, 2, ROWS), k_gates=_gate_tiles(plan)),
            q_ready=mg.barriers(MULTIPLIERS, arrivals=2 + plan.forget),
            **_pipeline(plan, arrivals=2 + plan.forget),
        ),
    )
    out_BTHV = checkpoint_name(out_BTHV[:, : layout.time, :, : v_BSGV.shape[-1]], "attention_out")
    lse_BTH = jnp.transpose(lse_BHT[:, :, : layout.time], (0, 2, 1))
    lse_BTH = checkpoint_name(lse_BTH, "attention_lse")
    residuals = q_BTHK, k_BSGK, v_BSGV, sinks_H, sums, start_BT, out_BTHV, lse_BTH
    return (out_BTHV, lse_BTH), residuals


def _backward(static, residuals, cotangents):
    q_BTHK, k_BSGK, v_BSGV, sinks_H, sums, start_BT, out_BTHV, lse_BTH = residuals
    dout_BTHV, dlse_BTH = cotangents
    delta_BTH = intervals.row_sums(dout_BTHV, dlse_BTH, out_BTHV)
    lse_BTH, delta_BTH, dsinks_H = intervals.softmax_gradient(delta_BTH, lse_BTH, sinks_H, start_BT)
    layout = _Layout(q_BTHK, k_BSGK, v_BSGV, sums, start_BT, static)
    plan = layout.plan(TILES[layout.size].dqueries)
    operands = (
        layout.start_BT,
        layout.queries(q_BTHK),
        layout.queries(dout_BTHV.astype(v_BSGV.dtype)),
        layout.keys(k_BSGK),
        layout.keys(v_BSGV),
    )
    lse_BTH, delta_BHT = lse_BTH * LOG2E, layout.rows(delta_BTH)
    rows = mg.vector((MULTIPLIERS, ROWS))
    dq_BTHK, *drow_BHT = layout.launch(
        functools.partial(kernels.dqueries, plan=plan),
        layout.key_tiles(plan),
        *operands,
        layout.rows(lse_BTH),
        delta_BHT,
        *layout.gates(),
        name="attention_dqueries",
        grid=dict(head=layout.heads, block=layout.tokens // layout.block, batch=layout.batch),
        outputs=[
            layout.shape(layout.tokens, layout.heads),
            *[layout.row_shape()] * plan.forget,
        ],
        scratch=dict(
            q_tile=layout.own_tile(),
            do_tile=layout.own_tile(),
            k_tile=layout.tiles(plan),
            v_tile=layout.tiles(plan),
            start=mg.vector((MULTIPLIERS, ROWS), jnp.int32),
            lse=rows,
            delta=rows,
            **layout.gate_tiles(q_gates=(MULTIPLIERS, 2, ROWS), k_gates=_gate_tiles(plan)),
            q_ready=mg.barriers(MULTIPLIERS, arrivals=5 + plan.forget),
            **_pipeline(plan, arrivals=2 + plan.forget),
        ),
    )
    plan = layout.plan(TILES[layout.size].dkeys)
    lse_shape = (plan.stages, plan.tile) if sums is None else _gate_tiles(plan)
    dk_BSGK, dv_BSGV, *dcolumn_2BHS = layout.launch(
        functools.partial(kernels.dkeys, plan=plan),
        layout.query_tiles(plan),
        *operands,
        layout.rows(lse_BTH) if sums is None else layout.rows_less_gates(lse_BTH),
        delta_BHT,
        *layout.gates()[1:],
        name="attention_dkeys",
        grid=dict(
            head=layout.kv_heads, block=layout.key_tokens // layout.block, batch=layout.batch
        ),
        outputs=[
            *[layout.shape(layout.key_tokens, layout.kv_heads)] * 2,
            *[layout.key_sums()] * plan.forget,
        ],
        scratch=dict(
            q_tile=layout.tiles(plan),
            do_tile=layout.tiles(plan),
            k_tile=layout.own_tile(),
            v_tile=layout.own_tile(),
            start=mg.vector((plan.stages, plan.tile), jnp.int32),
            lse=mg.vector(lse_shape),
            delta=mg.vector((plan.stages, plan.tile)),
            **layout.gate_tiles(
                k_gates=(MULTIPLIERS, plan.group, 2, ROWS),
                dcolumn=(2, MULTIPLIERS, plan.group, ROWS),
            ),
            k_ready=mg.barriers(MULTIPLIERS, arrivals=2 + plan.forget),
            **_pipeline(plan, arrivals=5),
        ),
    )
    dq_BTHK = dq_BTHK[:, : layout.time, :, : q_BTHK.shape[-1]]
    dk_BSGK = dk_BSGK[:, : k_BSGK.shape[1], :, : k_BSGK.shape[-1]]
    dv_BSGV = dv_BSGV[:, : v_BSGV.shape[1], :, : v_BSGV.shape[-1]]
    dsums = layout.from_gates(*drow_BHT, *dcolumn_2BHS) if plan.forget else None
    return dq_BTHK, dk_BSGK, dv_BSGV, dsinks_H, dsums, None


_attention.defvjp(_forward, _backward)


def _gate_tiles(plan: TilePlan) -> tuple[int, int, int]:
    """The shape of the sums of log-gates that the loading warpgroup fills."""
    return plan.stages, 2, plan.tile


def _pipeline(plan: TilePlan, arrivals: int) -> dict:
    """The barriers between the loading warpgroup and those that multiply."""
    return dict(
        ready=mg.barriers(plan.stages, arrivals), free=mg.barriers(plan.stages, MULTIPLIERS)
    )


class _Layout:
    """The padded arrays of one call, and the tiles that its blocks visit."""

    def __init__(self, q_BTHK, k_BSGK, v_BSGV, sums, start_BT, static):
        self.sums, self.static = sums, static
        self.batch, self.time, self.heads, key_size = q_BTHK.shape
        self.kv_heads, value_size = v_BSGV.shape[2:]
        self.slots = k_BSGK.shape[1] - self.time
        self.size = _round_up(max(key_size, value_size), SIZES)
        self.block = MULTIPLIERS * ROWS
        self.tokens = _round_up(self.time, self.block)
        self.key_tokens = _round_up(k_BSGK.shape[1], self.block)
        beyond = ((0, 0), (0, self.tokens - self.time))
        start_BT = jnp.pad(start_BT, beyond, constant_values=NO_KEYS)
        #: The index of a key; NO_KEYS for padding and for queries added at the end.
        self.start_BT = jnp.where(start_BT == NO_KEYS, NO_KEYS, start_BT + self.slots)

    def plan(self, tiles: tuple[int, int]) -> TilePlan:
        group = self.heads // self.kv_heads
        return TilePlan(
            self.block // MULTIPLIERS,
            *tiles,
            self.slots,
            group,
            self.static.scale,
            self.static.soft_cap,
            self.sums is not None,
        )

    def launch(self, body, *operands, **options):
        options |= dict(warpgroups=MULTIPLIERS + 1, interpret=self.static.interpret)
        return mg.launch(body, *operands, **options)

    def queries(self, x_BTHK):
        return _padded(x_BTHK, self.tokens, self.size)

    def keys(self, x_BSGK):
        return _padded(x_BSGK, self.key_tokens, self.size)

    def rows(self, x_BTH):
        """(B, T, H) -> (B, H, padded T)."""
        x_BTH = jnp.pad(x_BTH, ((0, 0), (0, self.tokens - self.time), (0, 0)))
        return jnp.transpose(x_BTH, (0, 2, 1))

    def gates(self) -> tuple[jax.Array, ...]:
        """(B, H, 2, padded T) and (B, H, 2, padded S): high and low sums of log-gates of queries and of
        keys; nothing without gates."""
        if self.sums is None:
            return ()
        queries = _pairs(self.sums.last(self.time), self.tokens)
        return queries, _pairs(self.sums, self.key_tokens)

    def rows_less_gates(self, x_BTH):
        """(B, H, 2, padded T): pairs of numbers of queries less their sums of log-gates."""
        high, low = self.sums.last(self.time)
        return _pairs(forget.added(x_BTH, jnp.zeros_like(x_BTH), -high, -low), self.tokens)

    def gate_tiles(self, **shapes: tuple[int, ...]) -> dict:
        """Shared memory of these shapes; none without gates."""
        if self.sums is None:
            return {}
        return {name: mg.vector(shape) for name, shape in shapes.items()}

    def from_gates(self, drow_BHT, dcolumn_2BHS) -> forget.Cumulative:
        """The cotangent of the sums (B, S, H), from the sums of d logits."""
        drow_BHS = jnp.pad(drow_BHT[..., : self.time], ((0, 0), (0, 0), (self.slots, 0)))
        dhigh_BHS = drow_BHS - jnp.sum(dcolumn_2BHS[..., : drow_BHS.shape[2]], axis=0)
        dhigh_BSH = jnp.transpose(dhigh_BHS, (0, 2, 1)) / LOG2E
        return forget.Cumulative(dhigh_BSH, jnp.zeros_like(dhigh_BSH))

    def shape(self, tokens: int, heads: int):
        return jax.ShapeDtypeStruct((self.batch, tokens, heads, self.size), jnp.bfloat16)

    def row_shape(self):
        return jax.ShapeDtypeStruct((self.batch, self.heads, self.tokens), jnp.float32)

    def key_sums(self):
        """Of tiles without and with a mask, one number per key and query head."""
        shape = 2, self.batch, self.heads, self.key_tokens
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def own_tile(self):
        """The tiles of the block's own tokens, one for each warpgroup that multiplies."""
        return mg.tile((MULTIPLIERS, ROWS, self.size))

    def tiles(self, plan: TilePlan):
        """The tiles that the loading warpgroup fills."""
        return mg.tile((plan.stages, plan.tile, self.size))

    def key_tiles(self, plan: TilePlan):
        """int32 (B, N, 4): the `kernels.TileRanges` of key tiles for each query block."""
        lowest_BN, highest_BN = self._starts(self.block)
        first_own_N = jnp.arange(lowest_BN.shape[1], dtype=jnp.int32) * self.block + self.slots
        last_own_N = jnp.minimum(first_own_N + self.block, self.slots + self.time) - 1
        first_BN, end_BN = lowest_BN // plan.tile, (last_own_N // plan.tile + 1)[None]
        return _tile_ranges(
            first_BN, end_BN, _ceil_div(highest_BN, plan.tile), (first_own_N + 1) // plan.tile
        )

    def query_tiles(self, plan: TilePlan):
        """int32 (B, N, 4): the `kernels.TileRanges` of query tiles for each key block."""
        lowest_BQ, highest_BQ = self._starts(plan.tile)
        tiles = lowest_BQ.shape[1]
        first_N = jnp.arange(self.key_tokens // self.block, dtype=jnp.int32) * self.block
        last_N = first_N + self.block - 1
        # The first tile with a query at or after the block's first key, and after its last.
        first_N1 = jnp.maximum(first_N - self.slots, 0) // plan.tile
        unmasked_N1 = _ceil_div(jnp.maximum(last_N - self.slots, 0), plan.tile)
        # One past the last tile with a query that sees the block's last key or an earlier one, and
        # one past the last tile whose queries all see the block's first key.
        tile_1Q1 = jnp.arange(1, tiles + 1, dtype=jnp.int32)[None, :, None]
        end_BN = jnp.where(lowest_BQ[:, :, None] <= last_N[None, None], tile_1Q1, 0).max(axis=1)
        unmasked_BN = jnp.where(highest_BQ[:, :, None] <= first_N[None, None], tile_1Q1, 0)
        return _tile_ranges(first_N1[None], end_BN, unmasked_N1[None], unmasked_BN.max(axis=1))

    def _starts(self, tokens: int):
        """The lowest and the highest start in each group of `tokens` queries, both (B, N)."""
        start_BNC = self.start_BT.reshape(self.batch, -1, tokens)
        return jnp.min(start_BNC, axis=-1), jnp.max(start_BNC, axis=-1)


def _tile_ranges(first_BN, end_BN, unmasked_first_BN, unmasked_end_BN):
    """The tiles `first` to `end`, of which `unmasked_first` to `unmasked_end` need no mask."""
    arrays = first_BN, end_BN, unmasked_first_BN, unmasked_end_BN
    arrays = [x[None] if x.ndim == 1 else x for x in arrays]
    first_BN, end_BN, unmasked_first_BN, unmasked_end_BN = jnp.broadcast_arrays(*arrays)
    total_BN = jnp.maximum(end_BN - first_BN, 0)
    end_BN = first_BN + total_BN
    unmasked_first_BN = jnp.clip(unmasked_first_BN, first_BN, end_BN)
    skip_BN = jnp.maximum(jnp.minimum(unmasked_end_BN, end_BN) - unmasked_first_BN, 0)
    low_BN = unmasked_first_BN - first_BN
    return jnp.stack([first_BN, low_BN, skip_BN, total_BN - skip_BN], axis=-1).astype(jnp.int32)


def _pairs(sums: forget.Cumulative, tokens: int):
    """(B, S, H) -> (B, H, 2, padded S)."""
    beyond = ((0, 0), (0, tokens - sums.high.shape[1]), (0, 0))
    return jnp.stack([jnp.transpose(jnp.pad(x, beyond), (0, 2, 1)) for x in sums], axis=2)


def _padded(x_BTHK, tokens: int, size: int):
    _, time, _, own_size = x_BTHK.shape
    return jnp.pad(x_BTHK, ((0, 0), (0, tokens - time), (0, 0), (0, size - own_size)))


def _ceil_div(number, divisor: int):
    return -(-number // divisor)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
