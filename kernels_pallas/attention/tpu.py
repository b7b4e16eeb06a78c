"""Attention on TPUs: query blocks against the keys in reach, transposed, one kernel per pass.

A query block has C tokens, and one grid step computes it for one query head. The grid's order puts
the key/value head and the block first, so that the query heads of a group find their keys in VMEM.
With a window, a query block loads its own C keys and the R keys before them: overlapping blocks of
one array, copied from HBM to VMEM, nothing is copied in HBM. Full attention keeps all keys of a
head in VMEM. If the window is no longer than a block (R <= C, a "band"), every 128 queries are
multiplied with exactly the R + 128 keys they may see. Otherwise a loop visits earlier key blocks,
the nearest first, with a running maximum. The loop stops where the window begins or where all
documents of the query block begin, so documents that have ended cost nothing.

Logits are transposed: keys on sublanes, queries on lanes. So maxima, sums, log-sum-exp and document
starts of queries are rows, reductions run over sublanes by plain vector operations, and the kernel
transposes no operand. Each query may see one interval of keys, [start, own], as in the chunked
form; the start is relative to the block's first query.

The backward pass is one kernel: it visits query blocks in order, recomputes the probabilities of
each once, writes its dq, and adds to float32 sums of dk and dv in VMEM. With a window these are the
sums of the R + C keys in reach: after each block the C keys that no later block sees are written
out, and the others move up. All sums have a fixed order, so results are deterministic. `out` and
`lse` are named "attention_out" and "attention_lse" for remat policies; p and d logits are recomputed.

NaN and infinity stay in their document without a copy in HBM (`tpu_nonfinite`).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas import dispatch, mxu, segments
from kernels_pallas.attention import forget, intervals, tpu_nonfinite
from kernels_pallas.attention import tpu_kernels as kernels
from kernels_pallas.attention.intervals import NO_KEYS
from kernels_pallas.attention.tpu_kernels import LOG2E, SUBLANES, AttentionPlan

MIB = 2**20
#: VMEM that a kernel may use: a v7x core has 64 MiB, v5e and v6e have 128.
VMEM_MIB = 48


class BlockSizes(NamedTuple):
    """Block sizes in tokens, as in `AttentionPlan`.

    Attributes:
      slice: keys of a slice.
      tile: of queries and keys, a side of the matrix unit.
      block: queries of a query block.
      short: the same if the window is no longer than a tile.
      size: head sizes are padded to multiples of it.
    """

    slice: int = 32
    tile: int = 128
    block: int = 512
    short: int = 1024
    size: int = 64


BLOCK_SIZES = BlockSizes()


class Static(NamedTuple):
    plan: AttentionPlan
    interpret: Any


class Gates(NamedTuple):
    """The sums of log forget gates of all keys, and the index of the first token of each query's
    document, as a float: an integer has no zero cotangent."""

    sums: forget.Cumulative
    first_BT: jax.Array

    @classmethod
    def of(cls, log_forget_BSH, segment_ids_BS, time: int) -> "Gates | None":
        """Those of the last `time` tokens' queries; None without gates."""
        if log_forget_BSH is None:
            return None
        slots = segment_ids_BS.shape[1] - time
        sums = forget.cumulative(log_forget_BSH.astype(jnp.float32), segment_ids_BS)
        first_BT = segments.first_token_index(segment_ids_BS)[:, slots:] - slots
        return cls(sums, jax.lax.stop_gradient(first_BT.astype(jnp.float32)))

    def cotangent(self, dqueries_BTH, dkeys_BSH) -> "Gates":
        """From the sums of d logits of each query and of each key."""
        slots = dkeys_BSH.shape[1] - dqueries_BTH.shape[1]
        dhigh_BSH = jnp.pad(dqueries_BTH, ((0, 0), (slots, 0), (0, 0))) - dkeys_BSH
        dsums = forget.Cumulative(dhigh_BSH, jnp.zeros_like(dhigh_BSH))
        return Gates(dsums, jnp.zeros_like(self.first_BT))


class OlderGates(NamedTuple):
    """Forget gates in a rectangle: the sums of its keys, and each query's sum since the last key, of the
    same document; 0 where a query sees none of the keys."""

    sums: forget.Cumulative
    since_BTH: jax.Array


class _Reach(NamedTuple):
    """`reach`, `block` and `front` of an `AttentionPlan`."""

    reach: int | None
    block: int
    front: int

    @property
    def rows(self) -> int:
        band = self.reach is not None and self.reach <= self.block
        return self.block + self.reach if band else self.block


def _reach(time: int, slots: int, window: int | None) -> _Reach:
    blocks, tile = BLOCK_SIZES, BLOCK_SIZES.tile
    if window is not None and window >= slots + time:
        window = None
    reach = None if window is None else _round_up(window - 1, tile)
    block = blocks.short if reach is not None and reach <= tile else blocks.block
    block = min(block, _round_up(time, tile))
    if reach is not None and reach > block:
        reach = _round_up(reach, block)
    return _Reach(reach, block, _round_up(slots, block) if reach is None else reach)


def make_plan(time, slots, window, scale, soft_cap, precision, forget=False) -> AttentionPlan:
    """The block sizes for T queries after `slots` older keys."""
    tile, (reach, block, front) = BLOCK_SIZES.tile, _reach(time, slots, window)
    unit = tile * mxu.tiles()
    if block % unit:
        unit = tile
    options = scale, soft_cap, precision, forget
    return AttentionPlan(tile, unit, BLOCK_SIZES.slice, block, reach, front, *options)


def vmem_mib(time, slots, window, key_size, value_size, dtype, gated_heads: int = 0) -> int:
    """MiB of VMEM that the backward kernel, the larger one, uses; `gated_heads` are the query heads of a
    key/value head if they have forget gates."""
    plan = _reach(time, slots, window)
    width = jnp.dtype(dtype).itemsize
    sizes = _round_up(key_size, 128) + _round_up(value_size, 128)
    keys = (
        plan.front + _round_up(time, plan.block) if plan.reach is None else plan.reach + plan.block
    )
    copies = 1 if plan.reach is None else 2  # a window's blocks are loaded while others are used
    in_reach = keys * (sizes + _round_up(key_size, 128)) * width * copies
    sums = keys * sizes * 4 * (1 if plan.reach is None else 2)
    queries = 4 * plan.block * sizes * (width + 4)
    pairs = plan.rows * plan.block * (2 * width + 12)
    gates = 0
    if gated_heads:
        rows = 2 * SUBLANES + _round_up(gated_heads if plan.reach is None else 1, SUBLANES)
        gates = 4 * (keys * rows + plan.rows * 128)
    return -(-(in_reach + sums + queries + pairs + gates) // MIB)


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
    """(out_BTHV, lse_BTH); the queries are the last T of the S tokens."""
    time = q_BTHK.shape[1]
    slots = k_BSGK.shape[1] - time
    precision = mxu.resolve_precision(precision)
    has_gates = log_forget_BSH is not None
    plan = make_plan(time, slots, window, scale, soft_cap, precision, has_gates)
    start_BT = intervals.starts(segment_ids_BS, slots, window)
    static = Static(plan, dispatch.target().interpret)
    gates = Gates.of(log_forget_BSH, segment_ids_BS, time)
    return _attention(q_BTHK, k_BSGK, v_BSGV, sinks_H, gates, start_BT, static)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attention(q_BTHK, k_BSGK, v_BSGV, sinks_H, gates, start_BT, static):
    return _forward(q_BTHK, k_BSGK, v_BSGV, sinks_H, gates, start_BT, static)[0]


def _forward(q_BTHK, k_BSGK, v_BSGV, sinks_H, gates, start_BT, static):
    inputs = q_BTHK, k_BSGK, v_BSGV, sinks_H, gates, start_BT
    out_BTHV, lse_BTH, unclean_BG = named(*outputs(*inputs, static))
    return (out_BTHV, lse_BTH), (*inputs, unclean_BG, out_BTHV, lse_BTH)


def named(out_BTHV, lse_BTH, unclean):
    """The residuals of a backward pass with their names: whatever it reads has one of the two, else the
    kernel would run again for it."""
    lse_BTH, unclean = (checkpoint_name(x, "attention_lse") for x in (lse_BTH, unclean))
    return checkpoint_name(out_BTHV, "attention_out"), lse_BTH, unclean


def outputs(q_BTHK, k_BSGK, v_BSGV, sinks_H, gates, start_BT, static, dtype=None):
    """(out_BTHV, lse_BTH, unclean_BG) of the forward kernel.

    Arguments:
      gates: `Gates`, in a rectangle `OlderGates`; None where the plan has none.
      start_BT: of the keys that a query sees, relative to the first query; in a rectangle relative to
        the end of the keys, so negative.
      dtype: of `out`; the values' by default.
    """
    layout = _Layout(q_BTHK, k_BSGK, v_BSGV, start_BT, static)
    plan, tokens = static.plan, layout.blocks * static.plan.block
    sinks = jnp.zeros(layout.heads, jnp.float32) if sinks_H is None else sinks_H.astype(jnp.float32)
    kernel = functools.partial(kernels.forward, plan=plan, has_sinks=sinks_H is not None)
    size, state = layout.value_size, pltpu.VMEM((1, plan.block), jnp.float32)
    gate_specs, gate_arrays, bias = (), (), ()
    if plan.forget:
        gate_specs, bias = (layout.per_gate(), layout.per_query_row(1)), (layout.bias(),)
        gate_arrays = layout.gates(gates.sums), layout.gates_since(gates)
    out_BHVT, lse_BH1T, unclean = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=layout.grid,
            in_specs=[
                layout.per_query(layout.key_size),
                layout.per_key(layout.key_size),
                layout.per_key_row(size),
                layout.document_row(),
                *gate_specs,
            ],
            out_specs=[layout.per_query_row(size), layout.per_query_row(1), layout.flag()],
            scratch_shapes=[
                pltpu.SMEM((1,), jnp.int32),
                pltpu.VMEM((plan.rows, plan.block), jnp.float32),
                state,
                state,
                state,
                pltpu.VMEM((size, plan.block), jnp.float32),
                *bias,
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((layout.batch, layout.heads, size, tokens), dtype or v_BSGV.dtype),
            jax.ShapeDtypeStruct((layout.batch, layout.heads, 1, tokens), jnp.float32),
            jax.ShapeDtypeStruct((layout.batch, layout.kv_heads, SUBLANES, 128), jnp.float32),
        ],
        compiler_params=layout.compiler_params(),
        interpret=static.interpret,
        name=_name("attention_forward", plan),
    )(
        *layout.earlier,
        sinks,
        layout.queries(q_BTHK),
        layout.keys(k_BSGK, (0, 2, 1, 3)),
        layout.keys(v_BSGV, (0, 2, 3, 1)),
        layout.start_B1T,
        *gate_arrays,
    )
    out_BTHV = layout.from_query_rows(out_BHVT, v_BSGV.shape[-1])
    lse_BTH = layout.from_query_rows(lse_BH1T, 1)[..., 0]
    return out_BTHV, lse_BTH, unclean[..., 0, 0] > 0


def _backward(static, residuals, cotangents):
    q_BTHK, k_BSGK, v_BSGV, sinks_H, gates, start_BT, unclean_BG, out_BTHV, lse_BTH = residuals
    dout_BTHV, dlse_BTH = cotangents
    delta_BTH = intervals.row_sums(dout_BTHV, dlse_BTH, out_BTHV)
    unclean_BG |= ~jnp.isfinite(delta_BTH).all((1, 2))[:, None]
    lse_BTH, delta_BTH, dsinks_H = tpu_nonfinite.softmax_gradient(
        delta_BTH, lse_BTH, sinks_H, start_BT
    )
    rows = dout_BTHV, lse_BTH, delta_BTH
    dq_BTHK, dk_BSGK, dv_BSGV, dgates = gradients(
        q_BTHK, k_BSGK, v_BSGV, gates, start_BT, unclean_BG, rows, static
    )
    return (
        dq_BTHK,
        dk_BSGK.astype(k_BSGK.dtype),
        dv_BSGV.astype(v_BSGV.dtype),
        dsinks_H,
        dgates and gates.cotangent(*dgates),
        None,
    )


def gradients(q_BTHK, k_BSGK, v_BSGV, gates, start_BT, unclean_BG, rows, static, dtype=None):
    """(dq_BTHK, dk_BSGK, dv_BSGV, dgates) of the backward kernel; those of keys and values are float32.
    `dgates` are the sums of d logits of queries and of keys, float32 (B, T, H) and (B, S, H), or None.

    Arguments:
      gates, start_BT: as in `outputs`.
      unclean_BG: the key/value heads in which a number is not finite.
      rows: (dout_BTHV, lse_BTH, delta_BTH), of the softmax over all keys.
      dtype: of dq; the queries' by default.
    """
    dout_BTHV, lse_BTH, delta_BTH = rows
    plan = static.plan
    # Query blocks after the last one see no keys; they write out the last sums of dk and dv.
    layout = _Layout(q_BTHK, k_BSGK, v_BSGV, start_BT, static, beyond=plan.front)
    key_size, value_size = layout.key_size, layout.value_size
    tokens = layout.blocks * plan.block
    leading = layout.batch, layout.kv_heads
    dkey, dvalue = (layout.key_sums(size) for size in (key_size, value_size))
    kernel = functools.partial(kernels.backward, plan=plan)
    pairs = pltpu.VMEM((plan.rows, plan.block), q_BTHK.dtype)
    sums = () if plan.reach is None else (dkey.scratch, dvalue.scratch)
    lse_BH1T = layout.query_rows(lse_BTH)
    gate_specs, gate_arrays, bias, gate_sums, gate_shapes = (), (), (), (), ()
    if plan.forget:
        dcolumn_shape, dcolumn_spec = layout.gate_sums()
        since_BH1T = layout.gates_since(gates)
        gate_specs, bias = (layout.per_gate(), layout.per_query_row(1)), (layout.bias(),)
        gate_arrays = layout.gates(gates.sums), since_BH1T
        gate_sums = layout.per_query_row(1), dcolumn_spec
        gate_shapes = (layout.batch, layout.heads, 1, tokens), dcolumn_shape
        lse_BH1T -= since_BH1T
    dq_BHKT, dk_BGSK, dv_BGSV, *dgates = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=layout.grid,
            in_specs=[
                layout.per_query(key_size),
                layout.per_query(value_size),
                layout.per_key(key_size),
                layout.per_key_row(key_size),
                layout.per_key(value_size),
                layout.document_row(),
                layout.per_query_row(1),
                layout.per_query_row(1),
                *gate_specs,
            ],
            out_specs=[layout.per_query_row(key_size), dkey.spec, dvalue.spec, *gate_sums],
            scratch_shapes=[
                pairs,
                pairs,
                pltpu.VMEM((key_size, plan.block), jnp.float32),
                *sums,
                *bias,
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(
                (layout.batch, layout.heads, key_size, tokens), dtype or q_BTHK.dtype
            ),
            jax.ShapeDtypeStruct((*leading, dkey.tokens, key_size), jnp.float32),
            jax.ShapeDtypeStruct((*leading, dvalue.tokens, value_size), jnp.float32),
            *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in gate_shapes),
        ],
        compiler_params=layout.compiler_params(),
        interpret=static.interpret,
        name=_name("attention_backward", plan),
    )(
        *layout.earlier,
        unclean_BG.reshape(-1).astype(jnp.int32),
        layout.queries(q_BTHK),
        layout.queries(dout_BTHV.astype(v_BSGV.dtype)),
        layout.keys(k_BSGK, (0, 2, 1, 3)),
        layout.keys(k_BSGK, (0, 2, 3, 1)),
        layout.keys(v_BSGV, (0, 2, 1, 3)),
        layout.start_B1T,
        lse_BH1T * LOG2E,
        layout.query_rows(delta_BTH),
        *gate_arrays,
    )
    dq_BTHK = layout.from_query_rows(dq_BHKT, q_BTHK.shape[-1])
    dk_BSGK = layout.from_keys(dk_BGSK, k_BSGK)
    dv_BSGV = layout.from_keys(dv_BGSV, v_BSGV)
    return dq_BTHK, dk_BSGK, dv_BSGV, layout.from_gates(*dgates) if plan.forget else None


_attention.defvjp(_forward, _backward)


def _name(kernel: str, plan: AttentionPlan) -> str:
    return f"{kernel}_older" if plan.rectangle else kernel


class _Sums(NamedTuple):
    """Where the gradients of keys or values, sums over queries, are kept."""

    tokens: int
    spec: pl.BlockSpec
    scratch: Any


class _Layout:
    """The blocked layout of one call: arrays in and out, and their block specs.

    The grid is (batch row, key/value head, query block, query head of the group).
    """

    def __init__(self, q_BTHK, k_BSGK, v_BSGV, start_BT, static, beyond=0):
        self.plan = plan = static.plan
        self.batch, self.time, self.heads, key_size = q_BTHK.shape
        self.kv_heads, value_size = v_BSGV.shape[2:]
        self.group = self.heads // self.kv_heads
        self.slots = k_BSGK.shape[1] - (0 if plan.rectangle else self.time)
        self.key_size, self.value_size = (
            _round_up(key_size, BLOCK_SIZES.size),
            _round_up(value_size, BLOCK_SIZES.size),
        )
        windowed = plan.reach is not None
        self.blocks = -(-(self.time + (beyond if windowed else 0)) // plan.block)
        self.padded = self.blocks * plan.block
        self.after = 0 if plan.rectangle else self.padded - self.time  # padding of keys
        self.key_tokens = plan.front + (0 if plan.rectangle else self.padded)
        self.grid = (self.batch, self.kv_heads, self.blocks, self.group)

        start_BT = jnp.pad(
            start_BT, ((0, 0), (0, self.padded - self.time)), constant_values=NO_KEYS
        )
        start_BNC = start_BT.reshape(self.batch, self.blocks, plan.block)
        first_1N1 = jnp.arange(self.blocks, dtype=jnp.int32)[None, :, None] * plan.block
        if not plan.rectangle:
            start_BNC = jnp.where(start_BNC == NO_KEYS, NO_KEYS, start_BNC - first_1N1)
        self.start_B1T = start_BNC.reshape(self.batch, 1, self.padded)
        self.earlier = _earlier_blocks(start_BNC, plan)

    def compiler_params(self):
        """A head's query blocks run in order: each finds the flags and sums of those before it."""
        return pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=(VMEM_MIB + 8) * MIB,
        )

    def queries(self, x_BTHK):
        """(B, T, H, K) -> (B, H, padded T, padded K)."""
        return self._laid_out(x_BTHK, (0, self.padded - self.time), (0, 2, 1, 3))

    def query_rows(self, x_BTH):
        """(B, T, H) -> (B, H, 1, padded T)."""
        x_BTH = jnp.pad(x_BTH, ((0, 0), (0, self.padded - self.time), (0, 0)))
        return jnp.transpose(x_BTH, (0, 2, 1))[:, :, None]

    def from_query_rows(self, x_BHKT, size):
        """(B, H, padded K, padded T) -> (B, T, H, K)."""
        return jnp.transpose(x_BHKT[:, :, :size, : self.time], (0, 3, 1, 2))

    def keys(self, x_BSGK, axes):
        """(B, S, G, K), padded before the first token too, with axes transposed."""
        return self._laid_out(x_BSGK, (self.plan.front - self.slots, self.after), axes)

    def from_keys(self, x_BGSK, like_BSGK):
        """(B, G, padded S, padded K) -> (B, S, G, K)."""
        first, (_, tokens, _, size) = self.plan.front - self.slots, like_BSGK.shape
        x_BGSK = x_BGSK[:, :, first : first + tokens, :size]
        return jnp.transpose(x_BGSK, (0, 2, 1, 3))

    def _laid_out(self, x_BTHK, tokens, axes):
        size = x_BTHK.shape[-1]
        sizes = 0, _round_up(size, BLOCK_SIZES.size) - size
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

    def flag(self) -> pl.BlockSpec:
        """One register for a key/value head."""
        return pl.BlockSpec((1, 1, SUBLANES, 128), lambda b, g, i, r, *_: (b, g, 0, 0))

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

    def gates(self, sums: forget.Cumulative):
        """(B, H, 2, padded S): high and low part of the sums of log-gates, of keys as they are laid out."""
        tokens = self.plan.front - self.slots, self.after
        parts = (jnp.pad(x_BSH, ((0, 0), tokens, (0, 0))) for x_BSH in sums)
        return jnp.stack([jnp.transpose(x_BSH, (0, 2, 1)) for x_BSH in parts], axis=2)

    def gates_since(self, gates: Gates | OlderGates):
        """(B, H, 1, padded T): each query's sum of log-gates since its block's first query, or since its
        document's first token if that is in the block; in a rectangle since the last key."""
        if self.plan.rectangle:
            return self.query_rows(gates.since_BTH)
        first_BT = jnp.pad(gates.first_BT, ((0, 0), (0, self.padded - self.time)))
        first_B11NC = first_BT.reshape(self.batch, 1, 1, self.blocks, self.plan.block)
        block_N1 = jnp.arange(self.blocks)[:, None] * self.plan.block
        begins_B11NC = first_B11NC > block_N1[None, None, None]
        high, low = (
            x.reshape(self.batch, self.heads, 1, self.blocks, self.plan.block)
            for x in map(self.query_rows, gates.sums.last(self.time))
        )
        before = (jnp.where(begins_B11NC, 0, x[..., :1]) for x in (high, low))
        since = sum(x - first for x, first in zip((high, low), before))
        return since.reshape(self.batch, self.heads, 1, self.padded)

    def per_gate(self) -> pl.BlockSpec:
        block, reach, group = self.plan.block, self.plan.reach, self.group
        if reach is None:
            shape = 1, 1, 2, self.key_tokens
            return pl.BlockSpec(shape, lambda b, g, i, r, *_: (b, g * group + r, 0, 0))
        one, parts, tokens = pl.Element(1), pl.Element(2), pl.Element(block + reach)
        shape = one, one, parts, tokens
        return pl.BlockSpec(shape, lambda b, g, i, r, *_: (b, g * group + r, 0, i * block))

    def bias(self):
        return pltpu.VMEM((self.plan.rows, self.plan.tile), jnp.float32)

    def gate_sums(self) -> tuple[tuple[int, ...], pl.BlockSpec]:
        """The shape of the sums of d logits of keys, and a step's block: with a window each step writes
        those of the keys in its reach, otherwise the steps of a key/value head add to the same."""
        block, reach, group = self.plan.block, self.plan.reach, self.group
        if reach is None:
            shape = self.batch, self.kv_heads, group, self.key_tokens
            return shape, pl.BlockSpec((1, 1, *shape[2:]), lambda b, g, i, r, *_: (b, g, 0, 0))
        shape = self.batch, self.heads, self.blocks, 1, reach + block
        spec = pl.BlockSpec(
            (1, 1, 1, *shape[3:]), lambda b, g, i, r, *_: (b, g * group + r, i, 0, 0)
        )
        return shape, spec

    def from_gates(self, drow_BH1T, dcolumn) -> tuple:
        """(dqueries_BTH, dkeys_BSH): the sums of d logits of each query and of each key."""
        block, reach = self.plan.block, self.plan.reach
        dqueries_BTH = self.from_query_rows(drow_BH1T, 1)[..., 0]
        dkeys_BHS = dcolumn
        if reach is not None:
            steps_BHNS = dcolumn[:, :, :, 0]
            dkeys_BHS = jnp.zeros((self.batch, self.heads, self.key_tokens), jnp.float32)
            # A tile of each step at a time: the tiles of all steps lie a block apart.
            for at in range(0, reach + block, self.plan.tile):
                tiles_BHNC = steps_BHNS[..., at : at + self.plan.tile]
                spread = jnp.pad(tiles_BHNC, ((0, 0),) * 3 + ((0, block - self.plan.tile),))
                spread = spread.reshape(self.batch, self.heads, self.padded)
                after = self.key_tokens - at - self.padded
                dkeys_BHS += jnp.pad(
                    spread[..., : self.padded + min(after, 0)],
                    ((0, 0), (0, 0), (at, max(after, 0))),
                )
        dkeys_BHS = dkeys_BHS.reshape(self.batch, self.heads, self.key_tokens)
        first, end = self.plan.front - self.slots, self.key_tokens - self.after
        return dqueries_BTH, jnp.transpose(dkeys_BHS[..., first:end], (0, 2, 1))

    def key_sums(self, size) -> _Sums:
        block, reach = self.plan.block, self.plan.reach
        if reach is None:
            return _Sums(self.key_tokens, self.per_key(size), None)
        spec = pl.BlockSpec((1, 1, block, size), lambda b, g, i, r, *_: (b, g, i, 0))
        return _Sums(self.padded, spec, pltpu.VMEM((reach + block, size), jnp.float32))


def _earlier_blocks(start_BNC, plan: AttentionPlan):
    """For each query block, flat: the number of earlier key blocks it sees, or -1 if it sees no
    keys at all, and how many of them, the nearest ones, need no mask."""
    lowest_BN, highest_BN = jnp.min(start_BNC, axis=-1), jnp.max(start_BNC, axis=-1)
    earlier_BN = -(jnp.minimum(lowest_BN, 0) // plan.block)
    earlier_BN = jnp.where(lowest_BN == NO_KEYS, -1, earlier_BN)
    unmasked_BN = -jnp.minimum(highest_BN, 0) // plan.block
    return earlier_BN.reshape(-1), unmasked_BN.reshape(-1)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
