"""Gated linear attention in chunks of C tokens: products of matrices, and a scan over states.

Within a chunk token i sees token j with the weight (q_i . k_j) times the decay between them; earlier
chunks it sees through the state before its chunk. A scan runs over blocks of chunks, whose
intermediates fit a core's cache; the backward pass recomputes these from the block's inputs. Memory
and work are linear in time. `scalar` (one decay per head) and `channel` (one per channel of the key)
differ in how a decay enters the products; both take exp only of sums of log-decays, which are <= 0,
and boundaries are masks.
"""

import functools

import jax
import jax.numpy as jnp

from kernels_pallas.gated_linear import channel, inputs, scalar
from kernels_pallas.gated_linear.chunks import Chunks, by_group, inclusive_sums, join, split

CHUNK = 64  # tokens, or fewer in a short sequence
BLOCK = 8  # chunks computed at once, or all if there are at most twice as many


def gated_linear(q_BTGK, k_BTGK, v_BTHV, log_decay, call):
    """(o_BTHV, last S_BHKV); every form of the op has this signature (`kernels_pallas.forms`)."""
    batch, time, groups = k_BTGK.shape[:3]
    length = chunk_length(time)
    chunks = -(-time // length)
    blocks = 1 if chunks <= 2 * BLOCK else -(-chunks // BLOCK)
    block = -(-chunks // blocks) * length
    added = blocks * block - time

    def cut(x_BT):
        """(blocks, B, T of a block, ...). Zeros are added in front, where tokens with decay 1 and no
        reset change nothing, so that the last token stays the last."""
        x_BT = jnp.pad(x_BT, ((0, 0), (added, 0)) + ((0, 0),) * (x_BT.ndim - 2))
        return jnp.moveaxis(x_BT.reshape(batch, blocks, block, *x_BT.shape[2:]), 1, 0)

    q_BTGK, k_BTGK, v_BTHV, log_decay = inputs.prepare(q_BTGK, k_BTGK, v_BTHV, log_decay, call)
    if log_decay.ndim == 1:
        log_decay = jnp.broadcast_to(log_decay, (batch, time, *log_decay.shape))
    tokens = (q_BTGK, k_BTGK, v_BTHV, call.starts_BT, log_decay)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(s_BGRKV, tokens):
        q_BTGK, k_BTGK, v_BTHV, starts_BT, decays = tokens
        chunks = Chunks(
            q_NBGCK=split(q_BTGK, length, axis=3),
            k_NBGCK=split(k_BTGK, length, axis=3),
            v_NBGRCV=split(by_group(v_BTHV, groups, axis=2), length, axis=4),
            number_NBC=inclusive_sums(split(starts_BT.astype(v_BTHV.dtype), length, axis=2)),
        )
        if decays.ndim == 3:
            g_NBGRC = split(by_group(decays, groups, axis=2), length, axis=4)
            o_NBGRCV, s_BGRKV = scalar.attend(chunks, g_NBGRC, s_BGRKV, call.precision)
        else:
            g_NBGRCK = split(by_group(decays, groups, axis=2), length, axis=4)
            o_NBGRCV, s_BGRKV = channel.attend(chunks, g_NBGRCK, s_BGRKV, call.precision)
        return s_BGRKV, join(o_NBGRCV)

    start = by_group(call.state_B, groups, axis=1)
    s_BGRKV, o = jax.lax.scan(step, start, jax.tree.map(cut, tokens))
    o_BTHV = jnp.moveaxis(o, 0, 1).reshape(batch, blocks * block, *v_BTHV.shape[2:])
    return call.without_padding(o_BTHV[:, added:]), s_BGRKV.reshape(call.state_B.shape)


def chunk_length(time: int) -> int:
    """Tokens per chunk: the smallest power of two >= T, at most `CHUNK`."""
    return min(CHUNK, 1 << max(0, time - 1).bit_length())
