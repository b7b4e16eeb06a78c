"""Gated linear attention in chunks of C tokens: products of matrices, and a scan over N states.

Within a chunk token i sees token j through (q_i . k_j) times the decay between them; earlier
chunks it sees through the state that enters its chunk. All chunks run side by side but for the
scan that gives every chunk its state, so memory and work are linear in time. How a decay enters
the products is what `scalar` (one a head) and `channel` (one a channel of the key) differ in;
both only ever take exp of sums of log-decays, which are <= 0, and boundaries are masks.
"""

from kernels_pallas.gated_linear import channel, scalar
from kernels_pallas.gated_linear.chunks import Chunks, by_group, inclusive_sums, join, split


def gated_linear(q_BTGK, k_BTGK, v_BTHV, log_decay, resets_BT, s_BHKV, precision):
    """(o_BTHV, final s_BHKV); the same arguments as the reference form."""
    time, groups = k_BTGK.shape[1:3]
    length = chunk_length(time)
    chunks = Chunks(
        q_NBGCK=split(q_BTGK, length, axis=3),
        k_NBGCK=split(k_BTGK, length, axis=3),
        v_NBGRCV=split(by_group(v_BTHV, groups, axis=2), length, axis=4),
        number_NBC=inclusive_sums(split(resets_BT.astype(v_BTHV.dtype), length, axis=2)),
    )
    s_BGRKV = by_group(s_BHKV, groups, axis=1)
    if log_decay.ndim == 4:
        g_NBGRCK = split(by_group(log_decay, groups, axis=2), length, axis=4)
        o_NBGRCV, s_BGRKV = channel.attend(chunks, g_NBGRCK, s_BGRKV, precision)
    else:
        if log_decay.ndim == 3:
            g_NBGRC = split(by_group(log_decay, groups, axis=2), length, axis=4)
            decays = scalar.TokenDecays.of(g_NBGRC)
        else:
            decays = scalar.FixedDecays.of(by_group(log_decay, groups, axis=0), time, length)
        o_NBGRCV, s_BGRKV = scalar.attend(chunks, decays, s_BGRKV, precision)
    return join(o_NBGRCV, time), s_BGRKV.reshape(s_BHKV.shape)


def chunk_length(time: int) -> int:
    """Tokens per chunk: a power of two, 64 where there are as many."""
    return min(64, 1 << max(0, time - 1).bit_length())
