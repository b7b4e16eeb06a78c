"""Gated linear attention in chunks of C tokens: products of matrices, and a scan over N states.

Within a chunk token i sees token j through (q_i . k_j) times the decay between them; earlier
chunks it sees through the state that enters its chunk. All chunks run side by side but for the
scan that gives every chunk its state, so memory and work are linear in time. How a decay enters
the products is what `scalar` (one a head) and `channel` (one a channel of the key) differ in;
both only ever take exp of sums of log-decays, which are <= 0, and boundaries are masks.
"""

import jax.numpy as jnp

from kernels_pallas.gated_linear import channel, chunks, scalar


def gated_linear(q_BTGK, k_BTGK, v_BTHV, log_decay, resets_BT, s_BHKV, precision):
    """(o_BTHV, final s_BHKV); the same arguments as the reference form."""
    batch, time, heads, _ = v_BTHV.shape
    groups = k_BTGK.shape[2]
    form = channel if log_decay.ndim == 4 else scalar
    if log_decay.ndim == 1:
        log_decay = jnp.broadcast_to(log_decay[None, None, :], (batch, time, heads))
    cut = chunks.cut(q_BTGK, k_BTGK, v_BTHV, log_decay, resets_BT, chunk_length(time))
    s_BGRKV = s_BHKV.reshape(batch, groups, heads // groups, *s_BHKV.shape[2:])
    o_NBGRCV, s_BGRKV = form.attend(cut, s_BGRKV, precision)
    return chunks.join(o_NBGRCV, time), s_BGRKV.reshape(s_BHKV.shape)


def chunk_length(time: int) -> int:
    """Tokens per chunk: a power of two, 64 where there are as many."""
    return min(64, 1 << max(0, time - 1).bit_length())
