"""Gated slots on TPUs: chunks of C tokens in order, the slots in VMEM from one to the next.

The pairs of tokens of a chunk meet level by level, as in the chunked form: at the level of halves
of h tokens the queries of each right half meet the keys of the left half beside it, and the decay
between them is a product of gates up to the query times one after the key. Here every level, from
single tokens on, is one product of whole chunks with its pairs masked out of C x C: levels of few
tokens would fill no matrix unit, and loops over tokens would be chains of dependent steps. Nothing
is divided by a gate and no sums of log-gates are subtracted; a document's start is a gate of 0.

Slots stand transposed, (K, M) and (V, M): what scales slot m then lies along lanes, as gates and
writes (C, M) do. The forward pass writes out the slots that enter each chunk; the backward pass
walks the chunks from the last, recomputes everything else from them, and carries the slots'
gradients in VMEM. All sums have one order.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas import dispatch, mxu
from kernels_pallas.gated_slots import tpu_kernels as kernels

CHUNK = 64
VMEM_LIMIT = 48 * 2**20


class _Static(NamedTuple):
    chunk: int
    precision: Any
    interpret: Any


def gated_slots(
    q_BTGRK,
    k_BTGK,
    v_BTGV,
    log_gate_BTGM,
    write_BTGM,
    resets_BT,
    k_slots_BGMK,
    v_slots_BGMV,
    *,
    scale,
    precision,
):
    """(out_BTGRV, lse_BTGR, last k slots, last v slots); at a reset the slots before count as 0."""
    time = q_BTGRK.shape[1]
    chunk = min(CHUNK, 1 << max(3, (time - 1).bit_length()))
    static = _Static(chunk, mxu.resolve_precision(precision), dispatch.target().interpret)
    added = -time % chunk

    def laid_out(x_BTG, axes):
        """(B, T, G, ...) with added tokens that keep the slots as they are, in another order."""
        x_BTG = jnp.pad(x_BTG, ((0, 0), (0, added)) + ((0, 0),) * (x_BTG.ndim - 2))
        return jnp.transpose(x_BTG, axes)

    by_token, by_query = (0, 2, 1, 3), (0, 2, 3, 1, 4)
    resets_BT11 = resets_BT[:, :, None, None]
    # The gate itself is computed from its logarithm inside: the gradient is the logarithm's.
    resets_BT1M = jnp.broadcast_to(resets_BT11, (*resets_BT.shape, 1, log_gate_BTGM.shape[-1]))
    out_BGRTV, lse_BGTR, k_last_BGKM, v_last_BGVM = _slots(
        laid_out(q_BTGRK * scale, by_query),
        laid_out(k_BTGK, by_token),
        laid_out(v_BTGV, by_token),
        laid_out(log_gate_BTGM, by_token),
        laid_out(write_BTGM, by_token),
        laid_out(resets_BT1M.astype(jnp.float32), by_token),
        jnp.swapaxes(k_slots_BGMK, 2, 3),
        jnp.swapaxes(v_slots_BGMV, 2, 3),
        static,
    )
    out_BTGRV = jnp.transpose(out_BGRTV, (0, 3, 1, 2, 4))[:, :time]
    lse_BTGR = jnp.transpose(lse_BGTR, (0, 2, 1, 3))[:, :time]
    return out_BTGRV, lse_BTGR, jnp.swapaxes(k_last_BGKM, 2, 3), jnp.swapaxes(v_last_BGVM, 2, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(8,))
def _slots(q, k, v, log_gate, write, resets, k_slots, v_slots, static):
    return _forward(q, k, v, log_gate, write, resets, k_slots, v_slots, static)[0]


def _forward(q, k, v, log_gate, write, resets, k_slots, v_slots, static):
    call = _Call(q, v, log_gate, static)
    out, lse, k_last, v_last, k_enter, v_enter = pl.pallas_call(
        functools.partial(kernels.forward, precision=static.precision),
        grid=call.grid,
        in_specs=[
            call.queries(call.key_size),
            call.tokens(call.key_size),
            call.tokens(call.value_size),
            call.tokens(call.slots),
            call.tokens(call.slots),
            call.shared(call.slots),
            call.state(call.key_size),
            call.state(call.value_size),
        ],
        out_specs=[
            call.queries(call.value_size),
            call.tokens(call.group),
            call.state(call.key_size),
            call.state(call.value_size),
            call.states(call.key_size),
            call.states(call.value_size),
        ],
        out_shape=[
            call.shape(call.group, call.time, call.value_size),
            call.shape(call.time, call.group),
            call.shape(call.key_size, call.slots),
            call.shape(call.value_size, call.slots),
            call.shape(call.chunks, call.key_size, call.slots),
            call.shape(call.chunks, call.value_size, call.slots),
        ],
        scratch_shapes=[
            pltpu.VMEM((call.key_size, call.slots), jnp.float32),
            pltpu.VMEM((call.value_size, call.slots), jnp.float32),
        ],
        compiler_params=call.compiler_params,
        interpret=static.interpret,
        name="gated_slots_forward",
    )(q, k, v, log_gate, write, resets, k_slots, v_slots)
    out, lse = checkpoint_name(out, "gated_slots_out"), checkpoint_name(lse, "gated_slots_lse")
    k_enter = checkpoint_name(k_enter, "gated_slots_k")
    v_enter = checkpoint_name(v_enter, "gated_slots_v")
    return (out, lse, k_last, v_last), (
        q,
        k,
        v,
        log_gate,
        write,
        resets,
        out,
        lse,
        k_enter,
        v_enter,
    )


def _backward(static, residuals, cotangents):
    q, k, v, log_gate, write, resets, out, lse, k_enter, v_enter = residuals
    dout, dlse, dk_last, dv_last = cotangents
    call = _Call(q, v, log_gate, static, reverse=True)
    # The row sum that softmax subtracts, less the log-sum-exp's own pull.
    delta = jnp.moveaxis(jnp.sum(dout * out, axis=-1), 2, 3) - dlse
    key, value, slots = call.key_size, call.value_size, call.slots
    dq, dk, dv, dlog_gate, dwrite, dk_slots, dv_slots = pl.pallas_call(
        functools.partial(kernels.backward, precision=static.precision),
        grid=call.grid,
        in_specs=[
            call.queries(key),
            call.tokens(key),
            call.tokens(value),
            call.tokens(slots),
            call.tokens(slots),
            call.shared(slots),
            call.queries(value),
            call.tokens(call.group),
            call.tokens(call.group),
            call.states(key),
            call.states(value),
            call.state(key),
            call.state(value),
        ],
        out_specs=[
            call.queries(key),
            call.tokens(key),
            call.tokens(value),
            call.tokens(slots),
            call.tokens(slots),
            call.state(key),
            call.state(value),
        ],
        out_shape=[
            call.shape(call.group, call.time, key),
            call.shape(call.time, key),
            call.shape(call.time, value),
            call.shape(call.time, slots),
            call.shape(call.time, slots),
            call.shape(key, slots),
            call.shape(value, slots),
        ],
        scratch_shapes=[
            pltpu.VMEM((key, slots), jnp.float32),
            pltpu.VMEM((value, slots), jnp.float32),
        ],
        compiler_params=call.compiler_params,
        interpret=static.interpret,
        name="gated_slots_backward",
    )(q, k, v, log_gate, write, resets, dout, lse, delta, k_enter, v_enter, dk_last, dv_last)
    return dq, dk, dv, dlog_gate, dwrite, None, dk_slots, dv_slots


_slots.defvjp(_forward, _backward)


class _Call:
    """Sizes of one call, and the blocks of its arrays over the grid (batch row, key/value head,

    chunk); `reverse` walks the chunks from the last.
    """

    def __init__(self, q_BGRTK, v_BGTV, log_gate_BGTM, static, reverse=False):
        self.batch, self.kv_heads, self.group, self.time, self.key_size = q_BGRTK.shape
        self.value_size, self.slots = v_BGTV.shape[-1], log_gate_BGTM.shape[-1]
        self.chunk, self.chunks = static.chunk, self.time // static.chunk
        self.grid = (self.batch, self.kv_heads, self.chunks)
        last = self.chunks - 1
        self.at = (lambda n: last - n) if reverse else (lambda n: n)
        self.compiler_params = pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_LIMIT
        )

    def shape(self, *sizes) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((self.batch, self.kv_heads, *sizes), jnp.float32)

    def queries(self, size) -> pl.BlockSpec:
        """Of (B, G, R, T, size)."""
        return pl.BlockSpec(
            (1, 1, self.group, self.chunk, size), lambda b, g, n: (b, g, 0, self.at(n), 0)
        )

    def tokens(self, size) -> pl.BlockSpec:
        """Of (B, G, T, size)."""
        return pl.BlockSpec((1, 1, self.chunk, size), lambda b, g, n: (b, g, self.at(n), 0))

    def shared(self, size) -> pl.BlockSpec:
        """Of (B, 1, T, size): the same for all heads."""
        return pl.BlockSpec((1, 1, self.chunk, size), lambda b, g, n: (b, 0, self.at(n), 0))

    def state(self, size) -> pl.BlockSpec:
        """Of (B, G, size, M)."""
        return pl.BlockSpec((1, 1, size, self.slots), lambda b, g, n: (b, g, 0, 0))

    def states(self, size) -> pl.BlockSpec:
        """Of (B, G, N, size, M)."""
        return pl.BlockSpec((1, 1, 1, size, self.slots), lambda b, g, n: (b, g, self.at(n), 0, 0))
