"""Blockwise attention in XLA: memory linear in T, and with a window work linear in T.

Queries are cut into blocks of C tokens. Each block is multiplied with its whole key range at once: with
a window the W - 1 keys before it and its own, in full attention all keys up to its end. So there is
no online softmax. `make_stages` turns this into a few static stages: blocks of a window are batched
in one product, a `lax.scan` loops over batches, and the number of stages, and so compile time, is
bounded.

Documents are contiguous, so the keys that a query may see are one interval [start_t, t]. It is
computed once per call and is the whole mask: boundaries, window and padding (an empty interval).

One custom_vjp saves q, k, v, out and lse and recomputes the probabilities from lse; out and lse are
named "attention_out" and "attention_lse" for remat policies. All matrix products have the layout
[m, k] x [k, n] with leading batch axes: on CPUs these run at 200 GFLOP/s, a product with a transposed
left operand at 50 to 130 (two cores).

Each part transposes its own slices, which the caches hold; results are written in the layout (B, T, H, K).
Whole arrays would be read and written in memory, and the keys' (B, G, K, S) has rows a power of two apart.
Only the keys and values of full attention, which many parts read, are transposed as a whole.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from kernels_pallas import dispatch, segments
from kernels_pallas.attention import forget

NEGATIVE = -1e30
LOWEST_MAX = -1e20  # above NEGATIVE: a row without keys gets exp(NEGATIVE - LOWEST_MAX) = 0
MAX_STAGES = 16  # of the triangle of full attention; bounds compile time
MAX_TOKENS = 512  # queries with a window whose logits are in memory at once; more leave the caches


class Stage(NamedTuple):
    """`loops` steps over `group` query blocks each, from block number `first`.

    Every block sees `width` keys. The first block's keys begin at `key`, and each later block's
    begin `step` keys after the previous one's (0: all begin at `key`).
    """

    first: int
    loops: int
    group: int
    key: int
    width: int
    step: int


def block_length(time: int, keys: int, window: int | None) -> int:
    """Queries per block, at most T.

    With a window 128. In full attention about 256, cut evenly to multiples of 16 (half the compile
    time of 128 at equal speed), or 128 beyond 8192 keys, to keep the logits small.
    """
    if window is not None or keys > 8192:
        return min(time, 128)
    blocks = -(-time // 256)
    return time if blocks == 1 else -(-time // (blocks * 16)) * 16


def make_stages(blocks: int, length: int, slots: int, window: int | None) -> list[Stage]:
    """Cuts the query blocks into at most MAX_STAGES + 2 stages that cover all their keys.

    Query t is key slots + t. Blocks whose keys begin at 0 form a growing triangle, with one block
    per stage while there are few. The others slide, many of them batched in one product.
    """
    keys = slots + blocks * length
    reach = keys if window is None else min(keys, -(-(window - 1) // length) * length)
    growing = min(blocks, max(0, -(-(reach - slots) // length)))
    per_stage = max(1, -(-growing // MAX_STAGES))
    stages = []
    for first in range(0, growing, per_stage):
        count = min(per_stage, growing - first)
        stages.append(Stage(first, count, 1, 0, slots + (first + count) * length, 0))
    first, side_by_side = growing, max(1, MAX_TOKENS // length)
    while first < blocks:
        group = min(side_by_side, blocks - first)
        loops = (blocks - first) // group
        key = slots + first * length - reach
        stages.append(Stage(first, loops, group, key, reach + length, length))
        first += loops * group
    return stages


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

    Several heads of a key/value head may share a forget gate: log_forget_BSH then has as many fewer.
    """
    time = q_BTHK.shape[1]
    slots = k_BSGK.shape[1] - time
    query_T = jnp.arange(time, dtype=jnp.int32)[None] + slots
    start_BT = segments.first_token_index(segment_ids_BS)[:, slots:]
    if window is not None:
        start_BT = jnp.maximum(start_BT, query_T - (window - 1))
    start_BT = jnp.where(segment_ids_BS[:, slots:] == 0, slots + time, start_BT)
    # The barrier keeps XLA from recomputing the starts for every logit they mask.
    start_BT = jax.lax.optimization_barrier(start_BT)
    # A window that is an array bounds only the mask: the stages must be static.
    if not isinstance(window, int) or window >= slots + time:
        window = None
    static = _Static(window, scale, soft_cap, precision)
    forgotten = None
    if log_forget_BSH is not None:
        dtype = dispatch.accumulator_dtype(q_BTHK, k_BSGK, v_BSGV)
        forgotten = forget.cumulative(log_forget_BSH.astype(dtype), segment_ids_BS)
    return _attention(q_BTHK, k_BSGK, v_BSGV, sinks_H, forgotten, start_BT, static)


class _Static(NamedTuple):
    window: int | None
    scale: float
    soft_cap: float | None
    precision: object


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attention(q_BTHK, k_BSGK, v_BSGV, sinks_H, forgotten, start_BT, static):
    return _forward(q_BTHK, k_BSGK, v_BSGV, sinks_H, forgotten, start_BT, static)[0]


def _forward(q_BTHK, k_BSGK, v_BSGV, sinks_H, forgotten, start_BT, static):
    shape = _Layout(q_BTHK, k_BSGK, v_BSGV, static)
    dtype = shape.dtype
    queries, starts = shape.padded(q_BTHK), shape.starts(start_BT)
    keys, values = shape.keys(k_BSGK, _GKS), shape.keys(v_BSGV, _GSK)
    sinks_1GM1 = None if sinks_H is None else shape.per_head(sinks_H.astype(dtype))
    gates = None if forgotten is None else _Gates.of(shape, forgotten)

    def block(part):
        q_NBGMK, start_NBC = part.queries(queries), part.starts(starts)
        k_NBGKS, v_NBGSV = part.keys(keys), part.keys(values)
        mask = part.mask(start_NBC)
        s_NBGMS, _ = _logits(q_NBGMK, k_NBGKS, mask, static, dtype, gates and gates.bias(part))
        m_NBGM1 = jnp.maximum(jnp.max(s_NBGMS, axis=-1, keepdims=True), LOWEST_MAX)
        if sinks_1GM1 is not None:
            m_NBGM1 = jnp.maximum(m_NBGM1, sinks_1GM1[None])
        p_NBGMS = jnp.exp(s_NBGMS - m_NBGM1)
        l_NBGM1 = jnp.sum(p_NBGMS, axis=-1, keepdims=True)
        if sinks_1GM1 is not None:
            l_NBGM1 += jnp.exp(sinks_1GM1[None] - m_NBGM1)
        o_NBGMV = _dot(p_NBGMS.astype(v_NBGSV.dtype), v_NBGSV, static, dtype)
        empty_NBGM1 = shape.empty(start_NBC)
        l_NBGM1 = jnp.where(empty_NBGM1, 1, l_NBGM1)
        lse_NBGM1 = jnp.where(empty_NBGM1, NEGATIVE, m_NBGM1 + jnp.log(l_NBGM1))
        o_NBGMV = (o_NBGMV / l_NBGM1).astype(v_BSGV.dtype)
        return part.from_queries(o_NBGMV), part.from_queries(lse_NBGM1)

    _, (out_BTHV, lse_BTH1) = shape.scan(lambda _, part: ((), block(part)), ())
    out_BTHV = checkpoint_name(out_BTHV, "attention_out")
    lse_BTH = checkpoint_name(lse_BTH1[..., 0], "attention_lse")
    residuals = (q_BTHK, k_BSGK, v_BSGV, sinks_H, forgotten, start_BT, out_BTHV, lse_BTH)
    return (out_BTHV, lse_BTH), residuals


def _backward(static, residuals, cotangents):
    q_BTHK, k_BSGK, v_BSGV, sinks_H, forgotten, start_BT, out_BTHV, lse_BTH = residuals
    dout_BTHV, dlse_BTH = cotangents
    shape = _Layout(q_BTHK, k_BSGK, v_BSGV, static)
    dtype = shape.dtype
    # d logits = p * (dp - delta); delta is the row sum that softmax subtracts, minus dlse.
    delta_BTH = jnp.sum(dout_BTHV.astype(dtype) * out_BTHV.astype(dtype), axis=-1) - dlse_BTH
    empty_BT1 = (start_BT >= k_BSGK.shape[1])[..., None]
    lse_BTH = jnp.where(empty_BT1, -NEGATIVE, lse_BTH)  # p = exp(s - lse) = 0 in padding
    dsinks_H = None
    if sinks_H is not None:
        p_sink_BTH = jnp.exp(sinks_H.astype(dtype)[None, None] - lse_BTH)
        dsinks_H = -jnp.sum(p_sink_BTH * delta_BTH, axis=(0, 1)).astype(sinks_H.dtype)

    queries, dout, starts = shape.padded(q_BTHK), shape.padded(dout_BTHV), shape.starts(start_BT)
    lse, delta = shape.padded(lse_BTH[..., None]), shape.padded(delta_BTH[..., None])
    keys, values = shape.keys(k_BSGK, _GKS), shape.keys(v_BSGV, _GKS)
    keys_of_dq = shape.keys(k_BSGK, _GSK)
    gates = None if forgotten is None else _Gates.of(shape, forgotten)

    def block(carry, part):
        dkeys, dvalues, dgates = carry
        q_NBGMK, do_NBGMV = part.queries(queries), part.queries(dout)
        # The barrier keeps XLA from folding the transposes back into slower products.
        q_NBGKM, do_NBGVM = jax.lax.optimization_barrier(
            (jnp.swapaxes(q_NBGMK, -1, -2), jnp.swapaxes(do_NBGMV, -1, -2))
        )
        mask = part.mask(part.starts(starts))
        k_NBGKS, bias = part.keys(keys), gates and gates.bias(part)
        s_NBGMS, slope_NBGMS = _logits(q_NBGMK, k_NBGKS, mask, static, dtype, bias)
        p_NBGMS = jnp.exp(s_NBGMS - part.queries(lse))
        dp_NBGMS = _dot(do_NBGMV, part.keys(values), static, dtype)
        ds_NBGMS = p_NBGMS * (dp_NBGMS - part.queries(delta))
        dqueries = None
        if gates is not None:
            dqueries, dgates = gates.add_gradient(part, dgates, ds_NBGMS)
        if slope_NBGMS is not None:
            ds_NBGMS *= slope_NBGMS
        ds_NBGMS = ds_NBGMS.astype(q_NBGMK.dtype)
        p_NBGMS = p_NBGMS.astype(do_NBGMV.dtype)
        dq_NBGMK = _dot(ds_NBGMS, part.keys(keys_of_dq), static, dtype)
        dk_NBGKS = _dot(q_NBGKM, ds_NBGMS, static, dtype)
        dv_NBGVS = _dot(do_NBGVM, p_NBGMS, static, dtype)
        sums = part.add_keys(dkeys, dk_NBGKS), part.add_keys(dvalues, dv_NBGVS), dgates
        return sums, (part.from_queries(dq_NBGMK), dqueries)

    zeros = keys.zeros(dtype), values.zeros(dtype), gates and gates.keys.high.zeros(dtype)
    (dkeys, dvalues, dgates), (dq_BTHK, dqueries) = shape.scan(block, zeros)
    dforgotten = None if gates is None else shape.from_gates(dqueries, dgates)
    dq_BTHK *= static.scale
    dk_BSGK = dkeys.natural(k_BSGK.shape[1]) * static.scale
    dv_BSGV = dvalues.natural(k_BSGK.shape[1])
    # Read by a rotation's gradient, transposes would be done anew for each of its four terms.
    dq_BTHK, dk_BSGK, dv_BSGV = jax.lax.optimization_barrier((dq_BTHK, dk_BSGK, dv_BSGV))
    return (
        dq_BTHK.astype(q_BTHK.dtype),
        dk_BSGK.astype(k_BSGK.dtype),
        dv_BSGV.astype(v_BSGV.dtype),
        dsinks_H,
        dforgotten,
        None,
    )


_attention.defvjp(_forward, _backward)


class _Layout:
    """The blocked layout of one call: M = R * C rows per key/value head and query block."""

    def __init__(self, q_BTHK, k_BSGK, v_BSGV, static):
        self.batch, self.time, self.heads, _ = q_BTHK.shape
        self.kv_heads = k_BSGK.shape[2]
        self.group = self.heads // self.kv_heads
        self.slots = k_BSGK.shape[1] - self.time
        self.length = block_length(self.time, k_BSGK.shape[1], static.window)
        self.blocks = -(-self.time // self.length)
        self.added = self.blocks * self.length - self.time
        self.stages = make_stages(self.blocks, self.length, self.slots, static.window)
        self.dtype = dispatch.accumulator_dtype(q_BTHK, k_BSGK, v_BSGV)
        self.slides = static.window is not None

    def padded(self, x_BTHK):
        """With zeros for the tokens that fill up the last block, of queries or of keys."""
        return jnp.pad(x_BTHK, ((0, 0), (0, self.added), (0, 0), (0, 0)))

    def keys(self, x_BSGK, axes) -> "_Keys":
        """Keys whose parts have the axis N and then `axes` of (B, S, G, K)."""
        x = self.padded(x_BSGK)
        return _Keys(x, axes, False) if self.slides else _Keys(jnp.transpose(x, axes), axes, True)

    def gates(self, x_BSH) -> "_Keys":
        """The same of (B, S, H), or fewer gates, whose parts are (N, B, G, R, S)."""
        batch, tokens, gates = x_BSH.shape
        return self.keys(x_BSH.reshape(batch, tokens, self.kv_heads, gates // self.kv_heads), _GKS)

    def from_gates(self, dqueries_BTH1, dkeys: "_Keys"):
        """The cotangent of the sums of log-gates (B, S, H), from those of queries and of keys."""
        dkeys_BSGR = dkeys.natural(self.slots + self.time)
        gates = dkeys_BSGR.shape[2] * dkeys_BSGR.shape[3]
        dqueries_BTH = jnp.sum(dqueries_BTH1.reshape(self.batch, self.time, gates, -1), axis=3)
        dqueries_BSH = jnp.pad(dqueries_BTH, ((0, 0), (self.slots, 0), (0, 0)))
        dhigh_BSH = dkeys_BSGR.reshape(dqueries_BSH.shape) + dqueries_BSH
        return forget.Cumulative(dhigh_BSH, jnp.zeros_like(dhigh_BSH))

    def starts(self, start_BT):
        """(B, T), padded; added queries see no keys."""
        last = self.slots + self.time + self.added
        return jnp.pad(start_BT, ((0, 0), (0, self.added)), constant_values=last)

    def per_head(self, x_H):
        """(H,) -> (1, G, M, 1)."""
        x_GR1 = x_H.reshape(self.kv_heads, self.group, 1)
        x_GRC = jnp.broadcast_to(x_GR1, (self.kv_heads, self.group, self.length))
        return x_GRC.reshape(1, self.kv_heads, self.group * self.length, 1)

    def empty(self, start_NBC):
        """Whether a row sees no keys: (N, B, 1, M, 1)."""
        return self.rows(start_NBC[..., None] >= self.slots + self.time)

    def rows(self, x_NBCS):
        """(N, B, C, S) -> (N, B, 1, M, S), repeated for the heads of a group."""
        return jnp.tile(x_NBCS, (1, 1, self.group, 1))[:, :, None]

    def scan(self, block, carry):
        """`carry, out = block(carry, part)` for all parts of all stages; outs (B, T, ...) along T."""
        outs = []
        for stage in self.stages:

            def step(carry, index, stage=stage):
                return block(carry, _Part(self, stage, index))

            if stage.loops == 1:
                carry, out = step(carry, 0)
            else:
                carry, out = jax.lax.scan(step, carry, jnp.arange(stage.loops, dtype=jnp.int32))
                out = jax.tree.map(lambda x: _merged(jnp.moveaxis(x, 0, 1), 1), out)
            outs.append(out)
        return carry, jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=1)[:, : self.time], *outs)


def _merged(x, axis: int):
    """The axis and the next one as one."""
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


_GKS, _GSK = (0, 2, 3, 1), (0, 2, 1, 3)  # of the axes (B, S, G, K)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Keys:
    """Keys, or values, in the layout in which parts slice them.

    Attributes:
      array: (B, S, G, K), or with its axes in the order `axes` if they `are_transposed`.
      axes: those of a part's keys after the first.
      are_transposed: whether `array` has them.
    """

    array: jax.Array
    axes: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))
    are_transposed: bool = dataclasses.field(metadata=dict(static=True))

    @property
    def time(self) -> int:
        """The axis S of the array."""
        return self.axes.index(1) if self.are_transposed else 1

    def zeros(self, dtype) -> "_Keys":
        return dataclasses.replace(self, array=jnp.zeros(self.array.shape, dtype))

    def natural(self, tokens: int):
        """(B, S, G, K) without what was added after `tokens`."""
        x = jnp.transpose(self.array, np.argsort(self.axes)) if self.are_transposed else self.array
        return x[:, :tokens]


class _Gates(NamedTuple):
    """The sums of log forget gates of all queries, (B, T, H, 1), and of all keys, `_Keys`."""

    group: int  # gates of a key/value head
    queries: forget.Cumulative
    keys: forget.Cumulative

    @classmethod
    def of(cls, shape: _Layout, forgotten: forget.Cumulative) -> "_Gates":
        gates = forgotten.high.shape[2]
        queries = (
            shape.padded(jnp.repeat(x_BTH, shape.heads // gates, axis=2)[..., None])
            for x_BTH in forgotten.last(shape.time)
        )
        keys = (shape.gates(x_BSH) for x_BSH in forgotten)
        return cls(gates // shape.kv_heads, forget.Cumulative(*queries), forget.Cumulative(*keys))

    def bias(self, part: "_Part"):
        """What a part adds to its logits, (N, B, G, M, S)."""
        rows = part.shape.group * part.shape.length
        high, low = (
            part.queries(queries) - self._rows(part.keys(keys), rows)
            for queries, keys in zip(self.queries, self.keys)
        )
        return high + low

    def add_gradient(self, part: "_Part", dkeys: _Keys, ds_NBGMS):
        """The queries' cotangent, and the keys' with the part's added."""
        shape = *ds_NBGMS.shape[:3], self.group, -1, ds_NBGMS.shape[-1]
        dkeys_NBGRS = -jnp.sum(ds_NBGMS.reshape(shape), axis=4)
        dqueries_NBGM1 = jnp.sum(ds_NBGMS, axis=-1, keepdims=True)
        return part.from_queries(dqueries_NBGM1), part.add_keys(dkeys, dkeys_NBGRS)

    def _rows(self, x_NBGRS, rows: int):
        """(N, B, G, R, S) -> (N, B, G, M, S), repeated for the queries of a block."""
        return jnp.repeat(x_NBGRS, rows // self.group, axis=3)


class _Part:
    """One step of a stage: `group` query blocks side by side and the keys they see."""

    def __init__(self, shape: _Layout, stage: Stage, index):
        self.shape, self.stage = shape, stage
        self.number = stage.first + index * stage.group
        self.key = stage.key + index * stage.group * stage.step

    def queries(self, x_BTHK):
        """The blocks' queries: (N, B, G, M, K)."""
        shape, x_BTHK = self.shape, self._own(x_BTHK)
        sizes = shape.batch, -1, shape.length, shape.kv_heads, shape.group, x_BTHK.shape[-1]
        return _merged(jnp.transpose(x_BTHK.reshape(sizes), (1, 0, 3, 4, 2, 5)), 3)

    def from_queries(self, x_NBGMK):
        """(N, B, G, M, K) -> (B, T, H, K)."""
        shape = self.shape
        sizes = *x_NBGMK.shape[:3], shape.group, shape.length, x_NBGMK.shape[-1]
        x_BNCGRK = jnp.transpose(x_NBGMK.reshape(sizes), (1, 0, 4, 2, 3, 5))
        return _merged(_merged(x_BNCGRK, 1), 2)

    def starts(self, start_BT):
        """(B, T) -> (N, B, C)."""
        sizes = self.shape.batch, -1, self.shape.length
        return jnp.moveaxis(self._own(start_BT).reshape(sizes), 1, 0)

    def _own(self, x_BT):
        """The tokens of the blocks."""
        length = self.shape.length
        return jax.lax.dynamic_slice_in_dim(
            x_BT, self.number * length, self.stage.group * length, 1
        )

    def keys(self, keys: _Keys):
        """The keys of each block along a new first axis; those of neighbours overlap."""
        group, width, step = self.stage.group, self.stage.width, self.stage.step
        all_keys = width + (group - 1) * step
        x = jax.lax.dynamic_slice_in_dim(keys.array, self.key, all_keys, keys.time)
        if group == 1:
            return (x if keys.are_transposed else jnp.transpose(x, keys.axes))[None]
        chunks = x.reshape(*x.shape[: keys.time], -1, step, *x.shape[keys.time + 1 :])
        chunks = jnp.moveaxis(chunks, keys.time, 0)
        if not keys.are_transposed:
            # The barrier keeps XLA from transposing them anew for each of the slices.
            chunks = jax.lax.optimization_barrier(
                jnp.transpose(chunks, (0, *(1 + axis for axis in keys.axes)))
            )
        overlapping = [chunks[j : j + group] for j in range(width // step)]
        return jnp.concatenate(overlapping, axis=1 + keys.axes.index(1))

    def add_keys(self, total: _Keys, part_NBGKS) -> _Keys:
        """`total[keys of the blocks] += part`, summed where keys overlap; the axes are `_GKS`."""
        group, width, step = self.stage.group, self.stage.width, self.stage.step
        if group == 1:
            chunks = part_NBGKS
        else:
            back = width // step - 1
            chunks = sum(
                jnp.pad(
                    part_NBGKS[..., j * step : (j + 1) * step], ((j, back - j),) + ((0, 0),) * 4
                )
                for j in range(back + 1)
            )
        if total.are_transposed:
            part = _merged(jnp.moveaxis(chunks, 0, 3), 3)
        else:
            part = _merged(jnp.transpose(chunks, (1, 0, 4, 2, 3)), 1)
        old = jax.lax.dynamic_slice_in_dim(
            total.array, self.key, part.shape[total.time], total.time
        )
        new = jax.lax.dynamic_update_slice_in_dim(total.array, old + part, self.key, total.time)
        return dataclasses.replace(total, array=new)

    def mask(self, start_NBC):
        """The interval [start, own index] of every row over its keys: (N, B, 1, M, width)."""
        group, length = self.stage.group, self.shape.length
        block_N = jnp.arange(group, dtype=jnp.int32)[:, None, None, None]
        key_NBCS = jnp.arange(self.stage.width, dtype=jnp.int32)[None, None, None]
        key_NBCS += self.key + block_N * self.stage.step
        query_NBCS = jnp.arange(length, dtype=jnp.int32)[None, None, :, None]
        query_NBCS += self.shape.slots + (self.number + block_N) * length
        return self.shape.rows((key_NBCS >= start_NBC[..., None]) & (key_NBCS <= query_NBCS))


def _logits(q_NBGMK, k_NBGKS, mask_NB1MS, static, dtype, bias_NBGMS=None):
    """Masked logits plus the bias, and d capped / d plain logits if there is a soft cap."""
    # Scaled here, in the accumulator's dtype: a scaled bf16 query would be rounded once more.
    s_NBGMS = _dot(q_NBGMK, k_NBGKS, static, dtype) * static.scale
    slope_NBGMS = None
    if static.soft_cap is not None:
        tanh_NBGMS = jnp.tanh(s_NBGMS / static.soft_cap)
        s_NBGMS, slope_NBGMS = static.soft_cap * tanh_NBGMS, 1 - jnp.square(tanh_NBGMS)
    if bias_NBGMS is not None:
        s_NBGMS += bias_NBGMS
    return jnp.where(mask_NB1MS, s_NBGMS, NEGATIVE), slope_NBGMS


def _dot(x_NBGMK, y_NBGKS, static, dtype):
    dims = (((4,), (3,)), ((0, 1, 2), (0, 1, 2)))
    return jax.lax.dot_general(
        x_NBGMK, y_NBGKS, dims, precision=static.precision, preferred_element_type=dtype
    )
