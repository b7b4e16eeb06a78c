"""Attention on TPUs: blocks of queries against the keys in reach, transposed, in one pass each way.

Queries go in blocks of C tokens, one grid step a block and query head; key/value head and block
come first, so that the heads of a group find their keys in VMEM. A windowed block brings its own C
keys and the R before them (overlapping blocks of one array: HBM to VMEM, nothing is copied in
HBM); full attention keeps the keys of a head in VMEM. Where the window is no longer than a block
(R <= C, a "band") every 128 queries meet exactly the R + 128 keys they may see. Otherwise a loop
walks over the blocks of keys before, from the block's own backwards, with a running maximum, and
stops where the window and all its documents have begun: documents that end are not visited.

Logits stand transposed, keys on sublanes and queries on lanes: then maxima, sums, log-sum-exp and
document starts of queries are rows, reductions run over sublanes by plain vector operations, and
no product needs an operand transposed in the kernel. What each query may see is one interval of
keys, [start, own], as in the chunked form; the start is relative to the block's first query.

The backward pass is one kernel, not two: blocks of queries in order, each recomputes its
probabilities once, writes its own dq and adds to float32 sums of dk and dv that stay in VMEM. For
a window these are the R + C keys in reach: the C that no later block sees are written out, the
others move up. The order of all sums is fixed, so results are deterministic. `out` and `lse` are
named "attention_out" and "attention_lse" for remat policies; p and d logits are recomputed.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas import dispatch, mxu
from kernels_pallas.attention import intervals
from kernels_pallas.attention import tpu_kernels as kernels
from kernels_pallas.attention.intervals import NOTHING
from kernels_pallas.attention.tpu_kernels import LOG2E, Plan

MIB = 2**20
#: VMEM that a kernel may plan for: a v7x core has 64 MiB, v5e and v6e have 128.
VMEM_MIB = 48


class Blocks(NamedTuple):
    """Tokens of a slice of keys, of a tile (the matrix unit's 128), and of a block of queries;
    `short` of the latter where the window is no longer than a tile. Head sizes are padded to
    multiples of `size`."""

    slice: int = 32
    tile: int = 128
    block: int = 512
    short: int = 1024
    size: int = 64


BLOCKS = Blocks()


class _Static(NamedTuple):
    plan: Plan
    interpret: Any


def make_plan(time, slots, window, scale, soft_cap, precision) -> Plan:
    """How T queries after `slots` older keys are cut."""
    blocks, tile = BLOCKS, BLOCKS.tile
    if window is not None and window >= slots + time:
        window = None
    reach = None if window is None else _up(window - 1, tile)
    block = blocks.short if reach is not None and reach <= tile else blocks.block
    block = min(block, _up(time, tile))
    if reach is not None and reach > block:
        reach = _up(reach, block)
    front = _up(slots, block) if reach is None else reach
    unit = tile * mxu.tiles()
    if block % unit:
        unit = tile
    return Plan(tile, unit, blocks.slice, block, reach, front, scale, soft_cap, precision)


def vmem_mib(time, slots, window, key_size, value_size, dtype) -> int:
    """MiB of VMEM that the backward kernel, the larger one, plans for."""
    plan = make_plan(time, slots, window, 1.0, None, mxu.Precision.DEFAULT)
    width = jnp.dtype(dtype).itemsize
    sizes = _up(key_size, 128) + _up(value_size, 128)
    keys = plan.front + _up(time, plan.block) if plan.reach is None else plan.reach + plan.block
    copies = 1 if plan.reach is None else 2  # a window's blocks are fetched while others are used
    in_reach = keys * (sizes + _up(key_size, 128)) * width * copies
    sums = keys * sizes * 4 * (1 if plan.reach is None else 2)
    queries = 4 * plan.block * sizes * (width + 4)
    pairs = plan.rows * plan.block * (2 * width + 12)
    return -(-(in_reach + sums + queries + pairs) // MIB)


def attention(
    q_BTHK, k_BSGK, v_BSGV, segment_ids_BS, sinks_H, *, window, scale, soft_cap, precision
):
    """(out_BTHV, lse_BTH); the queries are the last T of the S tokens."""
    time = q_BTHK.shape[1]
    slots = k_BSGK.shape[1] - time
    precision = mxu.resolve_precision(precision)
    plan = make_plan(time, slots, window, scale, soft_cap, precision)
    start_BT = intervals.starts(segment_ids_BS, slots, window)
    static = _Static(plan, dispatch.target().interpret)
    return _attention(q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, static)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, static):
    return _forward(q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, static)[0]


def _forward(q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, static):
    call = _Call(q_BTHK, k_BSGK, v_BSGV, start_BT, static)
    plan, tokens = static.plan, call.blocks * static.plan.block
    sinks = jnp.zeros(call.heads, jnp.float32) if sinks_H is None else sinks_H.astype(jnp.float32)
    kernel = functools.partial(kernels.forward, plan=plan, has_sinks=sinks_H is not None)
    size, state = call.value_size, pltpu.VMEM((1, plan.block), jnp.float32)
    out_BHVT, lse_BH1T = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=call.grid,
            in_specs=[
                call.per_query(call.key_size),
                call.per_key(call.key_size),
                call.per_key_row(size),
                call.document_row(),
            ],
            out_specs=[call.per_query_row(size), call.per_query_row(1)],
            scratch_shapes=[
                pltpu.VMEM((plan.rows, plan.block), jnp.float32),
                state,
                state,
                state,
                pltpu.VMEM((size, plan.block), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((call.batch, call.heads, size, tokens), v_BSGV.dtype),
            jax.ShapeDtypeStruct((call.batch, call.heads, 1, tokens), jnp.float32),
        ],
        compiler_params=call.compiler_params("parallel"),
        interpret=static.interpret,
        name="attention_forward",
    )(
        *call.visits,
        sinks,
        call.queries(q_BTHK),
        call.keys(k_BSGK, (0, 2, 1, 3)),
        call.keys(v_BSGV, (0, 2, 3, 1)),
        call.start_B1T,
    )
    out_BTHV = call.from_query_rows(out_BHVT, v_BSGV.shape[-1])
    lse_BTH = call.from_query_rows(lse_BH1T, 1)[..., 0]
    out_BTHV = checkpoint_name(out_BTHV, "attention_out")
    lse_BTH = checkpoint_name(lse_BTH, "attention_lse")
    return (out_BTHV, lse_BTH), (q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, out_BTHV, lse_BTH)


def _backward(static, residuals, cotangents):
    q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, out_BTHV, lse_BTH = residuals
    dout_BTHV, dlse_BTH = cotangents
    plan = static.plan
    lse_BTH, delta_BTH, dsinks_H = intervals.pulls(
        dout_BTHV, dlse_BTH, out_BTHV, lse_BTH, sinks_H, start_BT
    )

    # Blocks of queries beyond the last see nothing: they push the last sums of dk and dv out.
    call = _Call(q_BTHK, k_BSGK, v_BSGV, start_BT, static, beyond=plan.front)
    key_size, value_size = call.key_size, call.value_size
    tokens = call.blocks * plan.block
    leading = call.batch, call.kv_heads
    dkey, dvalue = (call.key_sums(size) for size in (key_size, value_size))
    kernel = functools.partial(kernels.backward, plan=plan)
    pairs = pltpu.VMEM((plan.rows, plan.block), q_BTHK.dtype)
    sums = () if plan.reach is None else (dkey.scratch, dvalue.scratch)
    dq_BHKT, dk_BGSK, dv_BGSV = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=call.grid,
            in_specs=[
                call.per_query(key_size),
                call.per_query(value_size),
                call.per_key(key_size),
                call.per_key_row(key_size),
                call.per_key(value_size),
                call.document_row(),
                call.per_query_row(1),
                call.per_query_row(1),
            ],
            out_specs=[call.per_query_row(key_size), dkey.spec, dvalue.spec],
            scratch_shapes=[pairs, pairs, pltpu.VMEM((key_size, plan.block), jnp.float32), *sums],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((call.batch, call.heads, key_size, tokens), q_BTHK.dtype),
            jax.ShapeDtypeStruct((*leading, dkey.tokens, key_size), jnp.float32),
            jax.ShapeDtypeStruct((*leading, dvalue.tokens, value_size), jnp.float32),
        ],
        compiler_params=call.compiler_params("arbitrary"),
        interpret=static.interpret,
        name="attention_backward",
    )(
        *call.visits,
        call.queries(q_BTHK),
        call.queries(dout_BTHV.astype(v_BSGV.dtype)),
        call.keys(k_BSGK, (0, 2, 1, 3)),
        call.keys(k_BSGK, (0, 2, 3, 1)),
        call.keys(v_BSGV, (0, 2, 1, 3)),
        call.start_B1T,
        call.query_rows(lse_BTH * LOG2E),
        call.query_rows(delta_BTH),
    )
    dq_BTHK = call.from_query_rows(dq_BHKT, q_BTHK.shape[-1])
    dk_BSGK = call.from_keys(dk_BGSK, k_BSGK)
    dv_BSGV = call.from_keys(dv_BGSV, v_BSGV)
    return dq_BTHK, dk_BSGK, dv_BSGV, dsinks_H, None


_attention.defvjp(_forward, _backward)


class _Sums(NamedTuple):
    """Where sums over queries of a quantity of keys go."""

    tokens: int
    spec: pl.BlockSpec
    scratch: Any


class _Call:
    """The blocked layout of one call: arrays in and out, and their blocks over the grid

    (batch row, key/value head, block of queries, query head of the group).
    """

    def __init__(self, q_BTHK, k_BSGK, v_BSGV, start_BT, static, beyond=0):
        self.plan = plan = static.plan
        self.batch, self.time, self.heads, key_size = q_BTHK.shape
        self.kv_heads, value_size = v_BSGV.shape[2:]
        self.group = self.heads // self.kv_heads
        self.slots = k_BSGK.shape[1] - self.time
        self.key_size, self.value_size = _up(key_size, BLOCKS.size), _up(value_size, BLOCKS.size)
        windowed = plan.reach is not None
        self.blocks = -(-(self.time + (beyond if windowed else 0)) // plan.block)
        self.padded = self.blocks * plan.block
        self.key_tokens = plan.front + self.padded
        self.grid = (self.batch, self.kv_heads, self.blocks, self.group)

        start_BT = jnp.pad(
            start_BT, ((0, 0), (0, self.padded - self.time)), constant_values=NOTHING
        )
        start_BNC = start_BT.reshape(self.batch, self.blocks, plan.block)
        first_1N1 = jnp.arange(self.blocks, dtype=jnp.int32)[None, :, None] * plan.block
        start_BNC = jnp.where(start_BNC == NOTHING, NOTHING, start_BNC - first_1N1)
        self.start_B1T = start_BNC.reshape(self.batch, 1, self.padded)
        self.visits = _visits(start_BNC, plan)

    def compiler_params(self, order):
        """`order` of a head's query blocks: backward passes carry sums from one to the next."""
        return pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", order, order),
            vmem_limit_bytes=(VMEM_MIB + 8) * MIB,
        )

    def queries(self, x_BTHK):
        """(B, T, H, K) -> (B, H, padded T, padded K)."""
        return self._laid_out(x_BTHK, 0, (0, 2, 1, 3))

    def query_rows(self, x_BTH):
        """(B, T, H) -> (B, H, 1, padded T)."""
        x_BTH = jnp.pad(x_BTH, ((0, 0), (0, self.padded - self.time), (0, 0)))
        return jnp.transpose(x_BTH, (0, 2, 1))[:, :, None]

    def from_query_rows(self, x_BHKT, size):
        """(B, H, padded K, padded T) -> (B, T, H, K)."""
        return jnp.transpose(x_BHKT[:, :, :size, : self.time], (0, 3, 1, 2))

    def keys(self, x_BSGK, axes):
        """(B, S, G, K), padded in front too, with its axes in another order."""
        return self._laid_out(x_BSGK, self.plan.front - self.slots, axes)

    def from_keys(self, x_BGSK, like_BSGK):
        """(B, G, padded S, padded K) -> (B, S, G, K)."""
        first, (_, tokens, _, size) = self.plan.front - self.slots, like_BSGK.shape
        x_BGSK = x_BGSK[:, :, first : first + tokens, :size]
        return jnp.transpose(x_BGSK, (0, 2, 1, 3)).astype(like_BSGK.dtype)

    def _laid_out(self, x_BTHK, front, axes):
        size = x_BTHK.shape[-1]
        tokens, sizes = (front, self.padded - self.time), (0, _up(size, BLOCKS.size) - size)
        return jnp.transpose(jnp.pad(x_BTHK, ((0, 0), tokens, (0, 0), sizes)), axes)

    def per_query(self, size) -> pl.BlockSpec:
        group = self.group
        return pl.BlockSpec(
            (1, 1, self.plan.block, size), lambda b, g, i, r, *_: (b, g * group + r, i, 0)
        )

    def per_query_row(self, size) -> pl.BlockSpec:
        group = self.group
        return pl.BlockSpec(
            (1, 1, size, self.plan.block), lambda b, g, i, r, *_: (b, g * group + r, 0, i)
        )

    def document_row(self) -> pl.BlockSpec:
        return pl.BlockSpec((1, 1, self.plan.block), lambda b, g, i, r, *_: (b, 0, i))

    def per_key(self, size) -> pl.BlockSpec:
        return self._keys_in_reach(size, rows=False)

    def per_key_row(self, size) -> pl.BlockSpec:
        return self._keys_in_reach(size, rows=True)

    def _keys_in_reach(self, size, rows: bool) -> pl.BlockSpec:
        block, reach = self.plan.block, self.plan.reach
        if reach is None:
            shape = (1, 1, size, self.key_tokens) if rows else (1, 1, self.key_tokens, size)
            return pl.BlockSpec(
                shape, lambda b, g, i, r, *_: (b, g, 0, 0), pipeline_mode=pl.Buffered(1)
            )
        one, tokens, sizes = pl.Element(1), pl.Element(block + reach), pl.Element(size)
        if rows:
            return pl.BlockSpec(
                (one, one, sizes, tokens), lambda b, g, i, r, *_: (b, g, 0, i * block)
            )
        return pl.BlockSpec((one, one, tokens, sizes), lambda b, g, i, r, *_: (b, g, i * block, 0))

    def key_sums(self, size) -> _Sums:
        block, reach = self.plan.block, self.plan.reach
        if reach is None:
            return _Sums(self.key_tokens, self.per_key(size), None)
        spec = pl.BlockSpec((1, 1, block, size), lambda b, g, i, r, *_: (b, g, i, 0))
        return _Sums(self.padded, spec, pltpu.VMEM((reach + block, size), jnp.float32))


def _visits(start_BNC, plan: Plan):
    """Of each block of queries, flat: how many blocks of keys before its own it visits, -1 where
    it sees none at all, and how many of those, the nearest, need no mask."""
    lowest_BN, highest_BN = jnp.min(start_BNC, axis=-1), jnp.max(start_BNC, axis=-1)
    visits_BN = -(jnp.minimum(lowest_BN, 0) // plan.block)
    visits_BN = jnp.where(lowest_BN == NOTHING, -1, visits_BN)
    clear_BN = -jnp.minimum(highest_BN, 0) // plan.block
    return visits_BN.reshape(-1), clear_BN.reshape(-1)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
