"""Blockwise attention in XLA: memory linear in T, and for a window work linear in T.

Queries go in blocks of C tokens. Each block takes its whole key range at once (for a
window C + W - 1 keys, for full attention everything up to its own end), so there is no
online softmax. `plan` turns that into a few static stages: in a stage of several blocks a
`lax.scan` walks over them, and the number of stages, hence compile time, is bounded.

Documents are contiguous, so the keys a query may see are one interval [start_t, t]. It is
computed once a call and is the whole mask: boundaries, window and padding (empty interval).

One custom_vjp saves q, k, v, out and lse and recomputes the probabilities from lse. All
matrix products are laid out as plain [m, k] x [k, n] with leading batch axes, which on CPUs
run more than twice as fast as products that contract a last axis of both sides.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas import dispatch, segments

NEGATIVE = -1e30
LOWEST_MAX = -1e20  # above NEGATIVE: a row without keys gets exp(NEGATIVE - LOWEST_MAX) = 0
MAX_STAGES = 16


class Stage(NamedTuple):
    """`blocks` query blocks from number `first`; block i of them sees the `width` keys from
    `key + i * step`."""

    first: int
    blocks: int
    key: int
    width: int
    step: int


def block_length(time: int, window: int | None) -> int:
    """Queries per block: 128, or all of them where there are fewer."""
    return min(time, 128)


def plan(blocks: int, length: int, slots: int, window: int | None) -> list[Stage]:
    """Cuts the query blocks into at most 2 * MAX_STAGES stages that cover all their keys.

    Query t stands at key slots + t. Blocks whose keys begin at 0 form growing stages (a
    triangle, of one block each while they are few); the others slide.
    """
    keys = slots + blocks * length
    reach = keys if window is None else min(keys, -(-(window - 1) // 32) * 32)
    growing = min(blocks, max(0, -(-(reach - slots) // length)))
    stages = []
    group = max(1, -(-growing // MAX_STAGES))
    for first in range(0, growing, group):
        count = min(group, growing - first)
        stages.append(Stage(first, count, 0, slots + (first + count) * length, 0))
    sliding = blocks - growing
    group = 1 if sliding <= MAX_STAGES else sliding
    for first in range(growing, blocks, group):
        key = slots + first * length - reach
        stages.append(Stage(first, group, key, reach + length, length))
    return stages


def attention(
    q_BTHK, k_BSGK, v_BSGV, segment_ids_BS, sinks_H, *, window, scale, soft_cap, precision
):
    """(out_BTHV, lse_BTH); the queries are the last T of the S tokens."""
    time = q_BTHK.shape[1]
    slots = k_BSGK.shape[1] - time
    query_T = jnp.arange(time, dtype=jnp.int32)[None] + slots
    start_BT = segments.first_token_index(segment_ids_BS)[:, slots:]
    if window is not None:
        start_BT = jnp.maximum(start_BT, query_T - (window - 1))
    start_BT = jnp.where(segment_ids_BS[:, slots:] == 0, slots + time, start_BT)
    static = _Static(window, scale, soft_cap, precision)
    return _attention(q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, static)


class _Static(NamedTuple):
    window: int | None
    scale: float
    soft_cap: float | None
    precision: object


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, static):
    return _forward(q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, static)[0]


def _forward(q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, static):
    shape = _Blocks(q_BTHK, k_BSGK, v_BSGV, static)
    dtype = shape.dtype
    q_NBGMK = shape.queries(q_BTHK * jnp.asarray(static.scale, q_BTHK.dtype))
    k_BGKS = shape.keys(k_BSGK, (0, 2, 3, 1))
    v_BGSV = shape.keys(v_BSGV, (0, 2, 1, 3))
    start_NBC = shape.starts(start_BT)
    sinks_1GM1 = None if sinks_H is None else shape.per_head(sinks_H.astype(dtype))

    def block(number, key, width):
        q_BGMK, start_BC = q_NBGMK[number], start_NBC[number]
        k_BGKS_ = jax.lax.dynamic_slice_in_dim(k_BGKS, key, width, 3)
        v_BGSV_ = jax.lax.dynamic_slice_in_dim(v_BGSV, key, width, 2)
        s_BGMS, _ = _logits(q_BGMK, k_BGKS_, shape.mask(start_BC, number, key, width), static, dtype)
        m_BGM1 = jnp.maximum(jnp.max(s_BGMS, axis=-1, keepdims=True), LOWEST_MAX)
        if sinks_1GM1 is not None:
            m_BGM1 = jnp.maximum(m_BGM1, sinks_1GM1)
        p_BGMS = jnp.exp(s_BGMS - m_BGM1)
        l_BGM1 = jnp.sum(p_BGMS, axis=-1, keepdims=True)
        if sinks_1GM1 is not None:
            l_BGM1 += jnp.exp(sinks_1GM1 - m_BGM1)
        o_BGMV = _dot(p_BGMS.astype(v_BGSV_.dtype), v_BGSV_, static, dtype)
        empty_BGM1 = shape.empty(start_BC)
        l_BGM1 = jnp.where(empty_BGM1, 1, l_BGM1)
        lse_BGM1 = jnp.where(empty_BGM1, NEGATIVE, m_BGM1 + jnp.log(l_BGM1))
        return (o_BGMV / l_BGM1).astype(v_BSGV.dtype), lse_BGM1[..., 0]

    out_NBGMV, lse_NBGM = shape.map_blocks(block)
    out_BTHV = shape.from_queries(out_NBGMV)
    lse_BTH = shape.from_queries(lse_NBGM[..., None])[..., 0]
    residuals = (q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, out_BTHV, lse_BTH)
    return (out_BTHV, lse_BTH), residuals


def _backward(static, residuals, cotangents):
    q_BTHK, k_BSGK, v_BSGV, sinks_H, start_BT, out_BTHV, lse_BTH = residuals
    dout_BTHV, dlse_BTH = cotangents
    shape = _Blocks(q_BTHK, k_BSGK, v_BSGV, static)
    dtype = shape.dtype
    # d logits = p * (dp - delta): the row sum that softmax subtracts, less lse's own pull.
    delta_BTH = jnp.sum(dout_BTHV.astype(dtype) * out_BTHV.astype(dtype), axis=-1) - dlse_BTH
    empty_BT1 = (start_BT >= k_BSGK.shape[1])[..., None]
    lse_BTH = jnp.where(empty_BT1, -NEGATIVE, lse_BTH)  # p = exp(s - lse) = 0 in padding
    dsinks_H = None
    if sinks_H is not None:
        p_sink_BTH = jnp.exp(sinks_H.astype(dtype)[None, None] - lse_BTH)
        dsinks_H = -jnp.sum(p_sink_BTH * delta_BTH, axis=(0, 1)).astype(sinks_H.dtype)

    q_BTHK = q_BTHK * jnp.asarray(static.scale, q_BTHK.dtype)
    q_NBGMK, do_NBGMV = shape.queries(q_BTHK), shape.queries(dout_BTHV)
    lse_NBGM1, delta_NBGM1 = shape.queries(lse_BTH[..., None]), shape.queries(delta_BTH[..., None])
    k_BGKS, k_BGSK = shape.keys(k_BSGK, (0, 2, 3, 1)), shape.keys(k_BSGK, (0, 2, 1, 3))
    v_BGVS = shape.keys(v_BSGV, (0, 2, 3, 1))
    start_NBC = shape.starts(start_BT)

    def block(carry, number, key, width):
        dk_BGKS, dv_BGVS = carry
        q_BGMK, do_BGMV, start_BC = q_NBGMK[number], do_NBGMV[number], start_NBC[number]
        k_BGKS_ = jax.lax.dynamic_slice_in_dim(k_BGKS, key, width, 3)
        k_BGSK_ = jax.lax.dynamic_slice_in_dim(k_BGSK, key, width, 2)
        v_BGVS_ = jax.lax.dynamic_slice_in_dim(v_BGVS, key, width, 3)
        mask = shape.mask(start_BC, number, key, width)
        s_BGMS, ds_scale_BGMS = _logits(q_BGMK, k_BGKS_, mask, static, dtype)
        p_BGMS = jnp.exp(s_BGMS - lse_NBGM1[number])
        dp_BGMS = _dot(do_BGMV, v_BGVS_, static, dtype)
        ds_BGMS = p_BGMS * (dp_BGMS - delta_NBGM1[number])
        if ds_scale_BGMS is not None:
            ds_BGMS *= ds_scale_BGMS
        ds_BGMS = ds_BGMS.astype(q_BGMK.dtype)
        p_BGMS = p_BGMS.astype(do_BGMV.dtype)
        dq_BGMK = _dot(ds_BGMS, k_BGSK_, static, dtype)
        dk_block = _dot(jnp.swapaxes(q_BGMK, -1, -2), ds_BGMS, static, dtype)
        dv_block = _dot(jnp.swapaxes(do_BGMV, -1, -2), p_BGMS, static, dtype)
        return (_add_at(dk_BGKS, dk_block, key), _add_at(dv_BGVS, dv_block, key)), dq_BGMK

    zeros = jnp.zeros(k_BGKS.shape, dtype), jnp.zeros(v_BGVS.shape, dtype)
    (dk_BGKS, dv_BGVS), dq_NBGMK = shape.scan_blocks(block, zeros)
    dq_BTHK = shape.from_queries(dq_NBGMK) * static.scale
    tokens = k_BSGK.shape[1]
    dk_BSGK = jnp.transpose(dk_BGKS[..., :tokens], (0, 3, 1, 2))
    dv_BSGV = jnp.transpose(dv_BGVS[..., :tokens], (0, 3, 1, 2))
    return (
        dq_BTHK.astype(q_BTHK.dtype), dk_BSGK.astype(k_BSGK.dtype), dv_BSGV.astype(v_BSGV.dtype),
        dsinks_H, None,
    )  # fmt: skip


_attention.defvjp(_forward, _backward)


class _Blocks:
    """The blocked layout of one call: M = R * C rows per key/value head and query block."""

    def __init__(self, q_BTHK, k_BSGK, v_BSGV, static):
        self.batch, self.time, self.heads, _ = q_BTHK.shape
        self.kv_heads = k_BSGK.shape[2]
        self.group = self.heads // self.kv_heads
        self.slots = k_BSGK.shape[1] - self.time
        self.length = block_length(self.time, static.window)
        self.blocks = -(-self.time // self.length)
        self.padded = self.blocks * self.length
        self.stages = plan(self.blocks, self.length, self.slots, static.window)
        self.dtype = dispatch.accumulator_dtype(q_BTHK, k_BSGK, v_BSGV)

    def queries(self, x_BTHK):
        """(B, T, H, K) -> (N, B, G, M, K)."""
        x = jnp.pad(x_BTHK, ((0, 0), (0, self.padded - self.time), (0, 0), (0, 0)))
        size = x.shape[-1]
        x = x.reshape(self.batch, self.blocks, self.length, self.kv_heads, self.group, size)
        x = jnp.transpose(x, (1, 0, 3, 4, 2, 5))
        return x.reshape(self.blocks, self.batch, self.kv_heads, self.group * self.length, size)

    def from_queries(self, x_NBGMK):
        """(N, B, G, M, K) -> (B, T, H, K)."""
        size = x_NBGMK.shape[-1]
        shape = (self.blocks, self.batch, self.kv_heads, self.group, self.length, size)
        x = jnp.transpose(x_NBGMK.reshape(shape), (1, 0, 4, 2, 3, 5))
        return x.reshape(self.batch, self.padded, self.heads, size)[:, : self.time]

    def keys(self, x_BSGK, axes):
        x = jnp.pad(x_BSGK, ((0, 0), (0, self.padded - self.time), (0, 0), (0, 0)))
        return jnp.transpose(x, axes)

    def starts(self, start_BT):
        """(B, T) -> (N, B, C); added queries see nothing."""
        pad = ((0, 0), (0, self.padded - self.time))
        start_BT = jnp.pad(start_BT, pad, constant_values=self.slots + self.padded)
        return jnp.moveaxis(start_BT.reshape(self.batch, self.blocks, self.length), 1, 0)

    def per_head(self, x_H):
        """(H,) -> (1, G, M, 1)."""
        x_GR1 = x_H.reshape(self.kv_heads, self.group, 1)
        x_GRC = jnp.broadcast_to(x_GR1, (self.kv_heads, self.group, self.length))
        return x_GRC.reshape(1, self.kv_heads, self.group * self.length, 1)

    def mask(self, start_BC, number, key, width):
        """The interval [start, own index] of every row, over the block's keys: (B, 1, M, width)."""
        key_11S = jnp.arange(width, dtype=jnp.int32)[None, None] + key
        query_1C1 = jnp.arange(self.length, dtype=jnp.int32)[None, :, None]
        query_1C1 += self.slots + number * self.length
        mask_BCS = (key_11S >= start_BC[..., None]) & (key_11S <= query_1C1)
        return self._rows(mask_BCS)

    def empty(self, start_BC):
        """Rows that see nothing: (B, 1, M, 1)."""
        return self._rows(start_BC[..., None] >= self.slots + self.time)

    def _rows(self, x_BCS):
        return jnp.tile(x_BCS, (1, self.group, 1))[:, None]

    def map_blocks(self, block):
        """`block(number, key, width)` for every block, results stacked over N."""
        return self.scan_blocks(lambda carry, *where: (carry, block(*where)), ())[1]

    def scan_blocks(self, block, carry):
        """`carry, out = block(carry, number, key, width)` over all blocks of all stages."""
        outs = []
        for stage in self.stages:

            def step(carry, i, stage=stage):
                return block(carry, stage.first + i, stage.key + i * stage.step, stage.width)

            if stage.blocks == 1:
                carry, out = step(carry, 0)
                out = jax.tree.map(lambda x: x[None], out)
            else:
                carry, out = jax.lax.scan(step, carry, jnp.arange(stage.blocks, dtype=jnp.int32))
            outs.append(out)
        return carry, jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=0), *outs)


def _logits(q_BGMK, k_BGKS, mask_B1MS, static, dtype):
    """Masked logits, and d logits / d (capped logits) where there is a soft cap."""
    s_BGMS = _dot(q_BGMK, k_BGKS, static, dtype)
    slope_BGMS = None
    if static.soft_cap is not None:
        tanh_BGMS = jnp.tanh(s_BGMS / static.soft_cap)
        s_BGMS, slope_BGMS = static.soft_cap * tanh_BGMS, 1 - jnp.square(tanh_BGMS)
    return jnp.where(mask_B1MS, s_BGMS, NEGATIVE), slope_BGMS


def _dot(x_BGMK, y_BGKN, static, dtype):
    dims = (((3,), (2,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(
        x_BGMK, y_BGKN, dims, precision=static.precision, preferred_element_type=dtype
    )


def _add_at(total, part, key):
    """total[..., key : key + width] += part."""
    old = jax.lax.dynamic_slice_in_dim(total, key, part.shape[-1], total.ndim - 1)
    return jax.lax.dynamic_update_slice_in_dim(total, old + part, key, total.ndim - 1)
