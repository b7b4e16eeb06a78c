"""Gated slots in chunks: matrix products over pairs of tokens, slots only between chunks.

A scan runs over groups of chunks. The chunks of a group are batched in large products (`passes.py`),
and only one group's intermediates are in memory at once. One custom_vjp saves the slots before each
chunk and the logits.
"""

import functools
import math

import jax
import jax.numpy as jnp

from kernels_pallas.gated_slots import passes

MAX_CHUNK = 64
MAX_ROWS = 2048  # rows of a group, so that its intermediates fit a core's cache


def chunk_length(time: int) -> int:
    """Tokens per chunk: the smallest power of two >= T, at most MAX_CHUNK."""
    return min(MAX_CHUNK, 1 << max(0, time - 1).bit_length())


def group_chunks(chunks: int, rows: int) -> tuple[int, int]:
    """(groups, chunks per group) for `chunks` chunks of `rows` rows each."""
    groups = -(-chunks // max(1, MAX_ROWS // rows))
    return groups, -(-chunks // groups)


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
    length = chunk_length(time)
    groups, chunks = group_chunks(
        -(-time // length), length * q_BTGRK.size // (time * q_BTGRK.shape[-1])
    )
    arrays = (q_BTGRK * scale, k_BTGK, v_BTGV, log_gate_BTGM, write_BTGM, resets_BT)

    def run(*arrays):
        return _slots(*arrays, precision)

    return in_groups(run, (groups, chunks, length), arrays, k_slots_BGMK, v_slots_BGMV)


def in_groups(run, sizes, arrays, k_slots_BGMK, v_slots_BGMV):
    """Applies `run` to arrays cut to (U, B, G, N, C, ...), `sizes` being (U, N, C); keys and values
    are concatenated along Z = K + V, in tokens and slots. Returns what `gated_slots` returns."""
    q_BTGRK, k_BTGK, v_BTGV, log_gate_BTGM, write_BTGM, resets_BT = arrays
    time, padded = q_BTGRK.shape[1], math.prod(sizes)

    def cut(x_BTG):
        """(B, T, G, ...) -> (U, B, G, N, C, ...); added tokens keep the slots as they are."""
        padding = ((0, 0), (0, padded - time)) + ((0, 0),) * (x_BTG.ndim - 2)
        x_BTG = jnp.pad(x_BTG, padding)
        x_BUNCG = x_BTG.reshape(x_BTG.shape[0], *sizes, *x_BTG.shape[2:])
        return jnp.moveaxis(x_BUNCG, (1, 4), (0, 2))

    def uncut(x_UBGNC):
        x_BUNCG = jnp.moveaxis(x_UBGNC, (0, 2), (1, 4))
        x_BTG = x_BUNCG.reshape(x_BUNCG.shape[0], padded, *x_BUNCG.shape[4:])
        return x_BTG[:, :time]

    kv_BTGZ = jnp.concatenate([k_BTGK, v_BTGV], axis=-1)
    slots_BGMZ = jnp.concatenate([k_slots_BGMK, v_slots_BGMV], axis=-1)
    arrays = (q_BTGRK, kv_BTGZ, log_gate_BTGM, write_BTGM, resets_BT[:, :, None])
    out_UBGNCRV, lse_UBGNCR, slots_BGMZ = run(*map(cut, arrays), slots_BGMZ)
    k_slots_BGMK, v_slots_BGMV = jnp.split(slots_BGMZ, [k_BTGK.shape[-1]], axis=-1)
    return uncut(out_UBGNCRV), uncut(lse_UBGNCR), k_slots_BGMK, v_slots_BGMV


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _slots(q_U, kv_U, log_gate_U, write_U, resets_U, slots_BGMZ, precision):
    """A scan over the groups."""
    return _forward(q_U, kv_U, log_gate_U, write_U, resets_U, slots_BGMZ, precision)[0]


def _forward(q_U, kv_U, log_gate_U, write_U, resets_U, slots_BGMZ, precision):
    def group(slots_BGMZ, tokens):
        outs, residuals = passes.forward(_ops(precision), *tokens, slots_BGMZ)
        return outs[2], (outs[0], outs[1], *residuals)

    tokens = (q_U, kv_U, log_gate_U, write_U, resets_U)
    last_BGMZ, (out_U, lse_U, *residuals) = jax.lax.scan(group, slots_BGMZ, tokens)
    return (out_U, lse_U, last_BGMZ), (*tokens, *residuals, out_U, lse_U)


def _backward(precision, residuals, cotangents):
    dout_U, dlse_U, dlast_BGMZ = cotangents

    def group(dslots_BGMZ, given):
        residuals, dout, dlse = given
        cotangents = dout, dlse, dslots_BGMZ
        *dtokens, dslots_BGMZ = passes.backward(_ops(precision), residuals, cotangents)
        return dslots_BGMZ, dtokens

    dslots_BGMZ, dtokens = jax.lax.scan(
        group, dlast_BGMZ, (residuals, dout_U, dlse_U), reverse=True
    )
    return *dtokens, None, dslots_BGMZ


_slots.defvjp(_forward, _backward)


def _ops(precision) -> passes.ChunkOps:
    """Slots are carried by a scan over the chunks."""
    dot = functools.partial(jnp.matmul, precision=precision)

    def step(slots_BGMZ, chunk):
        total_BGM, added_BGMZ = chunk
        return total_BGM[..., None] * slots_BGMZ + added_BGMZ, slots_BGMZ

    def carry(total_BGNM, writes, first_BGMZ, reverse=False):
        added = [dot(jnp.swapaxes(weights, -1, -2), x) for weights, x in writes]
        added_BGNMZ = jnp.concatenate(added, axis=-1)
        chunks = jnp.moveaxis(total_BGNM, 2, 0), jnp.moveaxis(added_BGNMZ, 2, 0)
        last_BGMZ, slots_NBGMZ = jax.lax.scan(step, first_BGMZ, chunks, reverse=reverse)
        return jnp.moveaxis(slots_NBGMZ, 0, 2), last_BGMZ

    return passes.ChunkOps(dot, carry)
