"""Gated slots on TPUs: chunks of C tokens in order, with the slots carried in VMEM.

The pairs of tokens of a chunk are computed level by level, as in the chunked form: at the level of
halves of h tokens the queries of each right half are multiplied with the keys of the left half beside
it, and the decay between them is the product of gates up to the query times that of gates after the
key. Here every level is one product of whole chunks, masked to the level's pairs: products of few
tokens would not fill the matrix unit, and loops over tokens would be chains of dependent steps.
Nothing is divided by a gate and no sums of log-gates are subtracted; a document's start is a gate of 0.

Slots are transposed, (K, M) and (V, M), so that factors of slot m lie along lanes, as gates and writes
(C, M) do. The forward pass writes out the slots before each chunk. The backward pass visits the chunks
in reverse, recomputes everything else from these slots, and carries the gradients of the slots in
VMEM. All sums have a fixed order.
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
        """(B, T, G, ...) with added tokens that keep the slots as they are, axes transposed."""
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
    layout = _Layout(q, v, log_gate, static)
    out, lse, k_last, v_last, k_enter, v_enter = pl.pallas_call(
        functools.partial(kernels.forward, precision=static.precision),
        grid=layout.grid,
        in_specs=[
            layout.queries(layout.key_size),
            layout.tokens(layout.key_size),
            layout.tokens(layout.value_size),
            layout.tokens(layout.slots),
            layout.tokens(layout.slots),
            layout.shared(layout.slots),
            layout.state(layout.key_size),
            layout.state(layout.value_size),
        ],
        out_specs=[
            layout.queries(layout.value_size),
            layout.tokens(layout.group),
            layout.state(layout.key_size),
            layout.state(layout.value_size),
            layout.states(layout.key_size),
            layout.states(layout.value_size),
        ],
        out_shape=[
            layout.shape(layout.group, layout.time, layout.value_size),
            layout.shape(layout.time, layout.group),
            layout.shape(layout.key_size, layout.slots),
            layout.shape(layout.value_size, layout.slots),
            layout.shape(layout.chunks, layout.key_size, layout.slots),
            layout.shape(layout.chunks, layout.value_size, layout.slots),
        ],
        scratch_shapes=[
            pltpu.VMEM((layout.key_size, layout.slots), jnp.float32),
            pltpu.VMEM((layout.value_size, layout.slots), jnp.float32),
        ],
        compiler_params=layout.compiler_params,
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
    layout = _Layout(q, v, log_gate, static, reverse=True)
    # The row sum that softmax subtracts, minus the cotangent of the log-sum-exp.
    delta = jnp.moveaxis(jnp.sum(dout * out, axis=-1), 2, 3) - dlse
    key, value, slots = layout.key_size, layout.value_size, layout.slots
    dq, dk, dv, dlog_gate, dwrite, dk_slots, dv_slots = pl.pallas_call(
        functools.partial(kernels.backward, precision=static.precision),
        grid=layout.grid,
        in_specs=[
            layout.queries(key),
            layout.tokens(key),
            layout.tokens(value),
            layout.tokens(slots),
            layout.tokens(slots),
            layout.shared(slots),
            layout.queries(value),
            layout.tokens(layout.group),
            layout.tokens(layout.group),
            layout.states(key),
            layout.states(value),
            layout.state(key),
            layout.state(value),
        ],
        out_specs=[
            layout.queries(key),
            layout.tokens(key),
            layout.tokens(value),
            layout.tokens(slots),
            layout.tokens(slots),
            layout.state(key),
            layout.state(value),
        ],
        out_shape=[
            layout.shape(layout.group, layout.time, key),
            layout.shape(layout.time, key),
            layout.shape(layout.time, value),
            layout.shape(layout.time, slots),
            layout.shape(layout.time, slots),
            layout.shape(key, slots),
            layout.shape(value, slots),
        ],
        scratch_shapes=[
            pltpu.VMEM((key, slots), jnp.float32),
            pltpu.VMEM((value, slots), jnp.float32),
        ],
        compiler_params=layout.compiler_params,
        interpret=static.interpret,
        name="gated_slots_backward",
    )(q, k, v, log_gate, write, resets, dout, lse, delta, k_enter, v_enter, dk_last, dv_last)
    return dq, dk, dv, dlog_gate, dwrite, None, dk_slots, dv_slots


_slots.defvjp(_forward, _backward)


class _Layout:
    """The sizes of one call and the block specs of its arrays.

    The grid is (batch row, key/value head, chunk); `reverse` visits the chunks from the last.
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
        """Of (B, 1, T, size): shared by all heads."""
        return pl.BlockSpec((1, 1, self.chunk, size), lambda b, g, n: (b, 0, self.at(n), 0))

    def state(self, size) -> pl.BlockSpec:
        """Of (B, G, size, M)."""
        return pl.BlockSpec((1, 1, size, self.slots), lambda b, g, n: (b, g, 0, 0))

    def states(self, size) -> pl.BlockSpec:
        """Of (B, G, N, size, M)."""
        return pl.BlockSpec((1, 1, 1, size, self.slots), lambda b, g, n: (b, g, self.at(n), 0, 0))
