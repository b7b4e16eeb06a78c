"""Attention on Hopper GPUs: blocks of 128 queries against the tiles of keys that they see.

A block of the grid is 128 queries of one head: two warpgroups multiply, 64 queries each, and a third
has the bulk copy engine fetch tiles of keys and values ahead of them. Softmax is online, in registers.
The backward pass is two kernels, one over blocks of queries for dq, one over blocks of 128 keys for
dk and dv, which also walks over the query heads of a key/value head's group: every sum has one block,
one order, and nothing is added atomically. Both recompute probabilities from the log-sum-exp.

What each query may see is one interval of keys, [start, own], as in the chunked form. From the starts,
before the call, comes which tiles a block visits, and which of them need no mask: work follows the
window and the documents, and one program serves every window. `out` and `lse` are named
"attention_out" and "attention_lse" for remat policies.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kernels_pallas import dispatch
from kernels_pallas import mosaic_gpu as mg
from kernels_pallas.attention import hopper_kernels as kernels
from kernels_pallas.attention import intervals
from kernels_pallas.attention.hopper_kernels import MULTIPLIERS, Plan
from kernels_pallas.attention.intervals import NOTHING
from kernels_pallas.mosaic_gpu import LOG2E

ROWS = 64  # of a warpgroup: what its products take
SIZES = 64  # head sizes are padded to multiples of it
MAX_SIZE = 128


class _Static(NamedTuple):
    scale: float
    soft_cap: float | None
    interpret: Any


class Tiles(NamedTuple):
    """Keys of a tile, and slots for tiles, of the forward kernel and of dq's; queries of dk's."""

    forward: tuple[int, int]
    dqueries: tuple[int, int]
    dkeys: tuple[int, int]


#: By padded head size: what fits registers and shared memory.
TILES = {64: Tiles((128, 4), (128, 2), (64, 4)), 128: Tiles((128, 2), (64, 2), (64, 2))}


def attention(
    q_BTHK, k_BSGK, v_BSGV, segment_ids_BS, sinks_H, *, window, scale, soft_cap, precision
):
    """(out_BTHV, lse_BTH); the queries are the last T of the S tokens. Products are of bfloat16
    whatever the `precision`: their operands are."""
    slots = k_BSGK.shape[1] - q_BTHK.shape[1]
    start_BT = intervals.starts(segment_ids_BS, slots, window)
    static = _Static(scale, soft_cap, dispatch.target().interpret)
    return _attention(q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, static)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, static):
    return _forward(q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, static)[0]


def _forward(q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, static):
    call = _Call(q_BTHK, k_BSGK, v_BSGV, start_BT, static)
    plan = call.plan(TILES[call.size].forward)
    sinks = jnp.zeros(call.heads, jnp.float32) if sinks_H is None else sinks_H.astype(jnp.float32)
    out_BTHV, lse_BHT = call.launch(
        functools.partial(kernels.forward, plan=plan, has_sinks=sinks_H is not None),
        call.visits_of_queries(plan),
        sinks,
        call.start_BT,
        call.queries(q_BTHK),
        call.keys(k_BSGK),
        call.keys(v_BSGV),
        name="attention_forward",
        grid=dict(head=call.heads, block=call.tokens // call.block, batch=call.batch),
        outputs=[call.shape(call.tokens, call.heads), call.row_shape()],
        scratch=dict(
            q_tile=call.own_tile(),
            k_tile=call.tiles(plan),
            v_tile=call.tiles(plan),
            start=mg.vector((MULTIPLIERS, ROWS), jnp.int32),
            lse=mg.vector((MULTIPLIERS, ROWS)),
            q_ready=mg.barriers(MULTIPLIERS, arrivals=2),
            **_pipeline(plan, arrivals=2),
        ),
    )
    out_BTHV = checkpoint_name(out_BTHV[:, : call.time, :, : v_BSGV.shape[-1]], "attention_out")
    lse_BTH = jnp.transpose(lse_BHT[:, :, : call.time], (0, 2, 1))
    lse_BTH = checkpoint_name(lse_BTH, "attention_lse")
    return (out_BTHV, lse_BTH), (q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, out_BTHV, lse_BTH)


def _backward(static, residuals, cotangents):
    q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, out_BTHV, lse_BTH = residuals
    dout_BTHV, dlse_BTH = cotangents
    lse_BTH, delta_BTH, dsinks_H = intervals.pulls(
        dout_BTHV, dlse_BTH, out_BTHV, lse_BTH, sinks_H, start_BT
    )
    call = _Call(q_BTHK, k_BSGK, v_BSGV, start_BT, static)
    plan = call.plan(TILES[call.size].dqueries)
    operands = (
        call.start_BT,
        call.queries(q_BTHK),
        call.queries(dout_BTHV.astype(v_BSGV.dtype)),
        call.keys(k_BSGK),
        call.keys(v_BSGV),
        call.rows(lse_BTH * LOG2E),
        call.rows(delta_BTH),
    )
    rows = mg.vector((MULTIPLIERS, ROWS))
    (dq_BTHK,) = call.launch(
        functools.partial(kernels.dqueries, plan=plan),
        call.visits_of_queries(plan),
        *operands,
        name="attention_dqueries",
        grid=dict(head=call.heads, block=call.tokens // call.block, batch=call.batch),
        outputs=[call.shape(call.tokens, call.heads)],
        scratch=dict(
            q_tile=call.own_tile(),
            do_tile=call.own_tile(),
            k_tile=call.tiles(plan),
            v_tile=call.tiles(plan),
            start=mg.vector((MULTIPLIERS, ROWS), jnp.int32),
            lse=rows,
            delta=rows,
            q_ready=mg.barriers(MULTIPLIERS, arrivals=5),
            **_pipeline(plan, arrivals=2),
        ),
    )
    plan = call.plan(TILES[call.size].dkeys)
    rows = mg.vector((plan.stages, plan.tile))
    dk_BSGK, dv_BSGV = call.launch(
        functools.partial(kernels.dkeys, plan=plan),
        call.visits_of_keys(plan),
        *operands,
        name="attention_dkeys",
        grid=dict(head=call.kv_heads, block=call.key_tokens // call.block, batch=call.batch),
        outputs=[call.shape(call.key_tokens, call.kv_heads)] * 2,
        scratch=dict(
            q_tile=call.tiles(plan),
            do_tile=call.tiles(plan),
            k_tile=call.own_tile(),
            v_tile=call.own_tile(),
            start=mg.vector((plan.stages, plan.tile), jnp.int32),
            lse=rows,
            delta=rows,
            k_ready=mg.barriers(MULTIPLIERS, arrivals=2),
            **_pipeline(plan, arrivals=5),
        ),
    )
    dq_BTHK = dq_BTHK[:, : call.time, :, : q_BTHK.shape[-1]]
    dk_BSGK = dk_BSGK[:, : k_BSGK.shape[1], :, : k_BSGK.shape[-1]]
    dv_BSGV = dv_BSGV[:, : v_BSGV.shape[1], :, : v_BSGV.shape[-1]]
    return dq_BTHK, dk_BSGK, dv_BSGV, dsinks_H, None


_attention.defvjp(_forward, _backward)


def _pipeline(plan: Plan, arrivals: int) -> dict:
    """The barriers between the warpgroup that fetches and those that multiply."""
    return dict(
        ready=mg.barriers(plan.stages, arrivals), free=mg.barriers(plan.stages, MULTIPLIERS)
    )


class _Call:
    """Padded arrays of one call, and which tiles its blocks visit."""

    def __init__(self, q_BTHK, k_BSGK, v_BSGV, start_BT, static):
        self.static = static
        self.batch, self.time, self.heads, key_size = q_BTHK.shape
        self.kv_heads, value_size = v_BSGV.shape[2:]
        self.slots = k_BSGK.shape[1] - self.time
        self.size = _up(max(key_size, value_size), SIZES)
        self.block = MULTIPLIERS * ROWS
        self.tokens = _up(self.time, self.block)
        self.key_tokens = _up(k_BSGK.shape[1], self.block)
        beyond = ((0, 0), (0, self.tokens - self.time))
        start_BT = jnp.pad(start_BT, beyond, constant_values=NOTHING)
        #: Of padding and of queries past the last one NOTHING, otherwise an index of a key.
        self.start_BT = jnp.where(start_BT == NOTHING, NOTHING, start_BT + self.slots)

    def plan(self, tiles: tuple[int, int]) -> Plan:
        group = self.heads // self.kv_heads
        return Plan(
            self.block // MULTIPLIERS,
            *tiles,
            self.slots,
            group,
            self.static.scale,
            self.static.soft_cap,
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

    def shape(self, tokens: int, heads: int):
        return jax.ShapeDtypeStruct((self.batch, tokens, heads, self.size), jnp.bfloat16)

    def row_shape(self):
        return jax.ShapeDtypeStruct((self.batch, self.heads, self.tokens), jnp.float32)

    def own_tile(self):
        """What the warpgroups that multiply hold."""
        return mg.tile((MULTIPLIERS, ROWS, self.size))

    def tiles(self, plan: Plan):
        """What is fetched."""
        return mg.tile((plan.stages, plan.tile, self.size))

    def visits_of_queries(self, plan: Plan):
        """int32 (B, N, 4), a `kernels.Visits` of tiles of keys for each block of queries."""
        lowest_BN, highest_BN = self._starts(self.block)
        first_own_N = jnp.arange(lowest_BN.shape[1], dtype=jnp.int32) * self.block + self.slots
        last_own_N = jnp.minimum(first_own_N + self.block, self.slots + self.time) - 1
        first_BN, end_BN = lowest_BN // plan.tile, (last_own_N // plan.tile + 1)[None]
        return _visits(
            first_BN, end_BN, _over(highest_BN, plan.tile), (first_own_N + 1) // plan.tile
        )

    def visits_of_keys(self, plan: Plan):
        """int32 (B, N, 4), a `kernels.Visits` of tiles of queries for each block of keys."""
        lowest_BQ, highest_BQ = self._starts(plan.tile)
        tiles = lowest_BQ.shape[1]
        first_N = jnp.arange(self.key_tokens // self.block, dtype=jnp.int32) * self.block
        last_N = first_N + self.block - 1
        # The first tile with a query at or after the block's first key, and after its last.
        first_N1 = jnp.maximum(first_N - self.slots, 0) // plan.tile
        clear_N1 = _over(jnp.maximum(last_N - self.slots, 0), plan.tile)
        # Past the last tile with a query that sees the block's last key, or one before; and past
        # the last tile all of whose queries see its first.
        tile_1Q1 = jnp.arange(1, tiles + 1, dtype=jnp.int32)[None, :, None]
        end_BN = jnp.where(lowest_BQ[:, :, None] <= last_N[None, None], tile_1Q1, 0).max(axis=1)
        clear_BN = jnp.where(highest_BQ[:, :, None] <= first_N[None, None], tile_1Q1, 0)
        return _visits(first_N1[None], end_BN, clear_N1[None], clear_BN.max(axis=1))

    def _starts(self, tokens: int):
        """The lowest and the highest start of each `tokens` queries, (B, N) both."""
        start_BNC = self.start_BT.reshape(self.batch, -1, tokens)
        return jnp.min(start_BNC, axis=-1), jnp.max(start_BNC, axis=-1)


def _visits(first_BN, end_BN, clear_first_BN, clear_end_BN):
    """Tiles from `first` to `end`, of which those of the second pair need no mask."""
    arrays = first_BN, end_BN, clear_first_BN, clear_end_BN
    arrays = [x[None] if x.ndim == 1 else x for x in arrays]
    first_BN, end_BN, clear_first_BN, clear_end_BN = jnp.broadcast_arrays(*arrays)
    total_BN = jnp.maximum(end_BN - first_BN, 0)
    end_BN = first_BN + total_BN
    clear_first_BN = jnp.clip(clear_first_BN, first_BN, end_BN)
    skip_BN = jnp.maximum(jnp.minimum(clear_end_BN, end_BN) - clear_first_BN, 0)
    low_BN = clear_first_BN - first_BN
    return jnp.stack([first_BN, low_BN, skip_BN, total_BN - skip_BN], axis=-1).astype(jnp.int32)


def _padded(x_BTHK, tokens: int, size: int):
    _, time, _, own_size = x_BTHK.shape
    return jnp.pad(x_BTHK, ((0, 0), (0, tokens - time), (0, 0), (0, size - own_size)))


def _over(number, divisor: int):
    return -(-number // divisor)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
