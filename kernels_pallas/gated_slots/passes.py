"""Both passes of gated slots over chunks, forward and backward, shared by the chunked and the Hopper form.

The two differ in how the slots are carried from chunk to chunk (`ChunkOps.carry`): the chunked form
scans, the Hopper form runs a kernel.

Slot m of query t sees key j <= t with the weight w_t,j,m = write_j,m times the gates of tokens j+1..t.
A decay for every (t, j, m) is too large to store, and it does not factor over a whole chunk:
exp(b_t) exp(-b_j) overflows. It factors about any token between j and t, into two products of gates,
both at most 1. So a chunk of C tokens is halved recursively: at the level of halves of h tokens, the
queries of each right half are multiplied with the keys of the left half beside it,

    w_t,j,m = (gates of the right half up to t)_m * (gates of the left half after j)_m write_j,m,

and each pair j < t occurs at exactly one level. One multiplication turns the products of gates of one
level into those of the next. Nothing is divided by a gate, no large sums of log-gates are subtracted,
and a document's start is a gate of 0. Within leaves of LEAF tokens the products would be too small to
be efficient: there, sums over tokens run as recurrences over the LEAF positions of all leaves at once,
and sums over slots compute whole leaves and mask the levels.

Both passes, logits from keys and outputs from values, are such sums; so are their gradients.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Letters are those of `kernels_pallas.dimensions`. Rows of a matrix are (token, query head).

LEAF = 8


class ChunkOps(NamedTuple):
    """The operations in which the forms differ.

    Attributes:
      dot: the product of two matrices.
      carry: a function of (total_BGNM, writes, first_BGMZ, reverse=False). Returns the slots before
        each chunk (reverse: after it), (B, G, N, M, Z), and those after the last (before the first).
        In a chunk slots <- total * slots + sum over `writes` of weights^T x; `writes` are pairs of
        weights (..., rows, M) and x (..., rows, .), whose columns are concatenated in Z.
    """

    dot: Callable
    carry: Callable


def forward(
    ops: ChunkOps, q_BGNCRK, kv_BGNCZ, log_gate_BGNCM, write_BGNCM, resets_B1NC, slots_BGMZ
):
    """(out, lse, last slots), and residuals: (entering slots, logits without each query's own
    write)."""
    k_BGNCK, v_BGNCV = _split(kv_BGNCZ, q_BGNCRK)
    chunk = _Chunk(log_gate_BGNCM, write_BGNCM, resets_B1NC, ops.dot)
    writes = ((chunk.written_BGNCM, kv_BGNCZ),)
    enter_BGNMZ, last_BGMZ = ops.carry(chunk.total_BGNM, writes, slots_BGMZ)
    k_slots_BGNMK, v_slots_BGNMV = _split(enter_BGNMZ, q_BGNCRK)

    earlier_BGNCRM, own_BGNCR1 = chunk.read(q_BGNCRK, k_BGNCK, k_slots_BGNMK)
    logits_BGNCRM = earlier_BGNCRM + own_BGNCR1 * write_BGNCM[..., None, :]
    lse_BGNCR = jax.nn.logsumexp(logits_BGNCRM, axis=-1)
    p_BGNCRM = jax.lax.optimization_barrier(jnp.exp(logits_BGNCRM - lse_BGNCR[..., None]))
    out_BGNCRV = chunk.expand(p_BGNCRM, v_BGNCV, v_slots_BGNMV, chunk.leaf_pairs(p_BGNCRM))

    return (out_BGNCRV, lse_BGNCR, last_BGMZ), (enter_BGNMZ, earlier_BGNCRM)


def backward(ops: ChunkOps, residuals, cotangents):
    """Gradients of q, kv, log-gates, writes and the first slots.

    residuals: the tokens' arrays of `forward`, its residuals, out and lse.
    """
    q_BGNCRK, kv_BGNCZ, log_gate_BGNCM, write_BGNCM, resets_B1NC = residuals[:5]
    enter_BGNMZ, earlier_BGNCRM, out_BGNCRV, lse_BGNCR = residuals[5:]
    dout_BGNCRV, dlse_BGNCR, dlast_BGMZ = cotangents
    k_BGNCK, v_BGNCV = _split(kv_BGNCZ, q_BGNCRK)
    k_slots_BGNMK, v_slots_BGNMV = _split(enter_BGNMZ, q_BGNCRK)
    chunk = _Chunk(log_gate_BGNCM, write_BGNCM, resets_B1NC, ops.dot)
    dot, write_BGNC1M = chunk.dot, write_BGNCM[..., None, :]

    # The softmax: dlogits = p (dp - sum p dp + dlse), dp_m = dout . (value slot m).
    q_leaf, dout_leaf = chunk.leaf_dots(q_BGNCRK, k_BGNCK), chunk.leaf_dots(dout_BGNCRV, v_BGNCV)
    own_BGNCR1 = chunk.own(q_leaf)
    p_BGNCRM = jnp.exp(earlier_BGNCRM + own_BGNCR1 * write_BGNC1M - lse_BGNCR[..., None])
    dearlier_BGNCRM, down_BGNCR1 = chunk.read(dout_BGNCRV, v_BGNCV, v_slots_BGNMV)
    delta_BGNCR = jnp.sum(dout_BGNCRV * out_BGNCRV, axis=-1) - dlse_BGNCR
    dp_BGNCRM = dearlier_BGNCRM + down_BGNCR1 * write_BGNC1M
    dlogits_BGNCRM = p_BGNCRM * (dp_BGNCRM - delta_BGNCR[..., None])
    # The barrier keeps XLA from recomputing the exponentials at every use.
    p_BGNCRM, dlogits_BGNCRM = jax.lax.optimization_barrier((p_BGNCRM, dlogits_BGNCRM))

    # Logits depend on keys as outputs depend on values.
    q_pairs, dout_pairs = chunk.leaf_pairs(dlogits_BGNCRM), chunk.leaf_pairs(p_BGNCRM)
    dq_BGNCRK = chunk.expand(dlogits_BGNCRM, k_BGNCK, k_slots_BGNMK, q_pairs)

    # The gradients of the slots, carried backward over the chunks.
    passes = ((q_BGNCRK, dlogits_BGNCRM, k_BGNCK), (dout_BGNCRV, p_BGNCRM, v_BGNCV))
    reads = [(chunk.prefixed_rows(w), _merge_rows(x)) for x, w, _ in passes]
    dleave_BGNMZ, dslots_BGMZ = ops.carry(chunk.total_BGNM, reads, dlast_BGMZ, reverse=True)

    # Each token's contributions: to the end of its chunk, within its leaf, in the pairs of every level.
    dkv_BGNCZ = dot(chunk.written_BGNCM, dleave_BGNMZ)
    dwrite_end_BGNCM = chunk.suffix_BGNCM * dot(kv_BGNCZ, _transposed(dleave_BGNMZ))
    dwrite_own_BGNCM = jnp.sum(own_BGNCR1 * dlogits_BGNCRM + down_BGNCR1 * p_BGNCRM, axis=-2)
    dkv_BGNCZ += _from_leaves(
        jnp.concatenate(
            [
                dot(_transposed(pairs), _merge_rows(_leaves(x, chunk.leaf)))
                for pairs, (x, _, _) in zip((q_pairs, dout_pairs), passes)
            ],
            axis=-1,
        )
    )
    dwrite_BGNCM = chunk.leaf_writes(q_leaf, dlogits_BGNCRM) + chunk.leaf_writes(
        dout_leaf, p_BGNCRM
    )
    for level in chunk.levels:
        parts, dwrite_JhM = [], 0
        for x_BGNCR, w_BGNCRM, y_BGNC in passes:
            x_JxK, w_JxM = level.right_rows(x_BGNCR), level.decayed_rows(w_BGNCRM)
            parts.append(dot(_transposed(dot(w_JxM, level.written_T)), x_JxK))
            dwrite_JhM += dot(_transposed(dot(x_JxK, _transposed(level.left(y_BGNC)))), w_JxM)
        dkv_BGNCZ = level.add_left(dkv_BGNCZ, jnp.concatenate(parts, axis=-1))
        dwrite_BGNCM = level.add_left(dwrite_BGNCM, dwrite_JhM * level.suffix_JhM)

    # d log_gate_i sums everything that decays through token i: the pairs j < i <= t, as the difference
    # of those that end and those that begin from i on; writes that reach the chunk's end; and slots
    # that pass through the whole chunk. A token's read of its own write does not decay and is left out.
    ends_BGNCM = jnp.sum(dlogits_BGNCRM * earlier_BGNCRM + p_BGNCRM * dearlier_BGNCRM, axis=-2)
    pairs_BGNCM = jax.lax.cumsum(ends_BGNCM - write_BGNCM * dwrite_BGNCM, axis=3, reverse=True)
    to_end_BGNCM = jax.lax.cumsum(_delayed(write_BGNCM * dwrite_end_BGNCM), axis=3)
    across_BGNM = chunk.total_BGNM * jnp.sum(dleave_BGNMZ * enter_BGNMZ, axis=-1)
    dlog_gate_BGNCM = pairs_BGNCM + to_end_BGNCM + across_BGNM[:, :, :, None]
    dlog_gate_BGNCM = jnp.where(resets_B1NC[..., None], 0, dlog_gate_BGNCM)
    dwrite_BGNCM += dwrite_own_BGNCM + dwrite_end_BGNCM
    return dq_BGNCRK, dkv_BGNCZ, dlog_gate_BGNCM, dwrite_BGNCM, dslots_BGMZ


class _Chunk:
    """Products of gates within each chunk, and sums over tokens and slots with them.

    `prefix` of a token is the product of the chunk's gates up to its own, `suffix` that of the gates
    after it; `written` is its write, decayed to the chunk's end.
    """

    def __init__(self, log_gate_BGNCM, write_BGNCM, resets_B1NC, dot):
        self.dot = dot
        gate_BGNCM = jnp.where(resets_B1NC[..., None], 0, jnp.exp(log_gate_BGNCM))
        length = gate_BGNCM.shape[3]
        self.gate_BGNCM, self.write_BGNCM, self.leaf = gate_BGNCM, write_BGNCM, min(LEAF, length)
        self.levels, self.leaf_levels = [], []
        prefix, suffix, half = gate_BGNCM, jnp.ones_like(gate_BGNCM), 1
        while half < length:
            if half < self.leaf:
                self.leaf_levels.append((half, prefix, suffix * write_BGNCM))
            else:
                self.levels.append(_Level(half, prefix, suffix, write_BGNCM))
            prefix, suffix = _doubled(prefix, suffix, half)
            half *= 2
        self.prefix_BGNCM, self.suffix_BGNCM = prefix, suffix
        self.written_BGNCM = suffix * write_BGNCM
        self.total_BGNM = prefix[:, :, :, -1]

    def prefixed_rows(self, w_BGNCRM):
        return _merge_rows(w_BGNCRM * self.prefix_BGNCM[..., None, :])

    def read(self, x_BGNCRK, y_BGNCK, slots_BGNMK):
        """x_t . slot_t of slots filled with y, without t's own write (..., C, R, M); x_t . y_t."""
        pairs_JxL = self.leaf_dots(x_BGNCRK, y_BGNCK)
        sums = self.dot(_merge_rows(x_BGNCRK), _transposed(slots_BGNMK))
        sums_BGNCRM = sums.reshape(*x_BGNCRK.shape[:-1], -1) * self.prefix_BGNCM[..., None, :]
        sums_BGNCRM += _from_leaves(self._leaf_reads(pairs_JxL))
        for level in self.levels:
            pairs_Jxh = self.dot(level.right_rows(x_BGNCRK), _transposed(level.left(y_BGNCK)))
            part_JxM = self.dot(pairs_Jxh, level.written_JhM)
            sums_BGNCRM = level.add_decayed_rows(sums_BGNCRM, part_JxM)
        return sums_BGNCRM, self.own(pairs_JxL)

    def expand(self, w_BGNCRM, y_BGNCK, slots_BGNMK, leaf_pairs_JxL):
        """sum_m w_tm slot_tm of slots filled with y, t's own write included: (..., C, R, K)."""
        leaf = self.dot(leaf_pairs_JxL, _leaves(y_BGNCK, self.leaf))
        leading = w_BGNCRM.shape[:-1]
        sums_BGNCRK = leaf.reshape(*leading, -1)
        sums_BGNCRK += self.dot(self.prefixed_rows(w_BGNCRM), slots_BGNMK).reshape(*leading, -1)
        for level in self.levels:
            pairs_Jxh = self.dot(level.decayed_rows(w_BGNCRM), level.written_T)
            sums_BGNCRK = level.add_rows(sums_BGNCRK, self.dot(pairs_Jxh, level.left(y_BGNCK)))
        return sums_BGNCRK

    def leaf_dots(self, x_BGNCRK, y_BGNCK):
        """x_t . y_j of all pairs within a leaf of L tokens: (B, G, N, J, L R, L)."""
        y_JKL = _transposed(_leaves(y_BGNCK, self.leaf))
        return self.dot(_merge_rows(_leaves(x_BGNCRK, self.leaf)), y_JKL)

    def own(self, pairs_JxL):
        """The pairs t = j: (B, G, N, C, R, 1)."""
        own = jnp.sum(jnp.where(self._leaf_mask(1, pairs_JxL), pairs_JxL, 0), -1)
        return own.reshape(*self.gate_BGNCM.shape[:-1], -1, 1)

    def leaf_pairs(self, w_BGNCRM):
        """sum_m w_tm (decay from j to t)_m write_jm of pairs j <= t of a leaf: (..., L R, L)."""
        leaf = self.leaf
        write_JML = _transposed(_leaves(self.write_BGNCM, leaf))
        pairs_JxL = self.dot(_merge_rows(_leaves(w_BGNCRM, leaf)), write_JML)
        pairs_JxL = jnp.where(self._leaf_mask(1, pairs_JxL), pairs_JxL, 0)
        for half, prefix_BGNCM, written_BGNCM in self.leaf_levels:
            decayed = _merge_rows(_leaves(w_BGNCRM * prefix_BGNCM[..., None, :], leaf))
            level_JxL = self.dot(decayed, _transposed(_leaves(written_BGNCM, leaf)))
            pairs_JxL = jnp.where(self._leaf_mask(half, pairs_JxL, 2 * half), level_JxL, pairs_JxL)
        return pairs_JxL

    def _leaf_mask(self, half, pairs_JxL, whole=None):
        """Pairs of the same token (half 1), or pairs of the level of halves of `half` tokens."""
        length, rows = self.leaf, pairs_JxL.shape[-2]
        t, j = np.arange(rows)[:, None] // (rows // length), np.arange(length)[None]
        if whole is None:
            return np.broadcast_to(t == j, pairs_JxL.shape)
        met = (t // whole == j // whole) & (t % whole >= half) & (j % whole < half)
        return np.broadcast_to(met, pairs_JxL.shape)

    def _leaf_reads(self, pairs_JxL):
        """sum_{j < t} pairs_tj (decay from j to t) write_j of a leaf: (B, G, N, J, L, R, M)."""
        gate_JLM, write_JLM = (_leaves(x, self.leaf) for x in (self.gate_BGNCM, self.write_BGNCM))
        pairs_JLRL = pairs_JxL.reshape(*gate_JLM.shape[:-1], -1, self.leaf)
        sums = jnp.zeros((*pairs_JLRL.shape[:-1], gate_JLM.shape[-1]), gate_JLM.dtype)
        for j in range(self.leaf - 1):
            later = _at_least(j + 1, sums, axis=-3)
            here = pairs_JLRL[..., j : j + 1] * write_JLM[..., j, None, None, :]
            sums = jnp.where(later, (sums + here) * gate_JLM[..., j + 1, None, None, :], sums)
        return sums

    def leaf_writes(self, pairs_JxL, w_BGNCRM):
        """sum_{t > j} pairs_tj (decay from j to t) w_t of a leaf: (B, G, N, C, M)."""
        gate_JLM, w_JLRM = (_leaves(x, self.leaf) for x in (self.gate_BGNCM, w_BGNCRM))
        pairs_JLRL = pairs_JxL.reshape(*w_JLRM.shape[:-1], self.leaf)
        sums = jnp.zeros_like(gate_JLM)
        for t in range(self.leaf - 1, 0, -1):
            here = jnp.sum(pairs_JLRL[..., t, :, :, None] * w_JLRM[..., t, :, None, :], axis=-3)
            earlier = ~_at_least(t, sums, axis=-2)
            sums = jnp.where(earlier, (sums + here) * gate_JLM[..., t, :][..., None, :], sums)
        return _from_leaves(sums)


class _Level:
    """The pairs of neighbouring halves of `half` tokens: keys of the left, queries of the right."""

    def __init__(self, half, prefix_BGNCM, suffix_BGNCM, write_BGNCM):
        self.half = half
        self.prefix_JhM = _halves(prefix_BGNCM, half)[1]
        self.suffix_JhM = self.left(suffix_BGNCM)
        self.written_JhM = self.left(write_BGNCM) * self.suffix_JhM
        self.written_T = _transposed(self.written_JhM)

    def left(self, x_BGNCM):
        return _halves(x_BGNCM, self.half)[0]

    def right_rows(self, x_BGNCRK):
        return _merge_rows(_halves(x_BGNCRK, self.half)[1])

    def decayed_rows(self, x_BGNCRM):
        """Weights on slots at the queries, decayed back to the middle."""
        return _merge_rows(_halves(x_BGNCRM, self.half)[1] * self.prefix_JhM[..., None, :])

    def add_left(self, x_BGNCM, part_JhM):
        left, right = _halves(x_BGNCM, self.half)
        return _join(left + part_JhM, right)

    def add_rows(self, x_BGNCRM, part_JxM):
        left, right = _halves(x_BGNCRM, self.half)
        return _join(left, right + part_JxM.reshape(right.shape))

    def add_decayed_rows(self, x_BGNCRM, part_JxM):
        left, right = _halves(x_BGNCRM, self.half)
        return _join(left, right + part_JxM.reshape(right.shape) * self.prefix_JhM[..., None, :])


def _doubled(prefix_BGNCM, suffix_BGNCM, half):
    """Products up to and after each token within 2 * half tokens, from those within half."""
    prefix, suffix = _leaves(prefix_BGNCM, 2 * half), _leaves(suffix_BGNCM, 2 * half)
    right = _at_least(half, prefix, axis=-2)
    left_total, right_total = prefix[..., half - 1, :], prefix[..., 2 * half - 1, :]
    prefix = prefix * jnp.where(right, left_total[..., None, :], 1)
    suffix = suffix * jnp.where(right, 1, right_total[..., None, :])
    # Without barriers XLA finds every product anew wherever it is used.
    return jax.lax.optimization_barrier((_from_leaves(prefix), _from_leaves(suffix)))


def _split(x_Z, q_BGNCRK):
    """Keys and values, or the slots of each."""
    size = q_BGNCRK.shape[-1]
    return x_Z[..., :size], x_Z[..., size:]


def _leaves(x_BGNC, length):
    """(B, G, N, C, ...) -> (B, G, N, J, length, ...)."""
    return x_BGNC.reshape(*x_BGNC.shape[:3], -1, length, *x_BGNC.shape[4:])


def _from_leaves(x_J):
    """The inverse of `_leaves`."""
    return x_J.reshape(*x_J.shape[:3], -1, *x_J.shape[5:])


def _halves(x_BGNC, half):
    """Left and right halves, each (B, G, N, J, half, ...)."""
    x = _leaves(x_BGNC, 2 * half)
    return x[:, :, :, :, :half], x[:, :, :, :, half:]


def _join(left, right):
    """The inverse of `_halves`."""
    return _from_leaves(jax.lax.optimization_barrier(jnp.concatenate([left, right], axis=4)))


def _merge_rows(x):
    """(..., h, R, K) -> (..., h R, K)."""
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


def _transposed(x):
    return jnp.swapaxes(x, -1, -2)


def _at_least(first, like, axis):
    """True where the index along `axis` is `first` or later."""
    return jax.lax.broadcasted_iota(jnp.int32, like.shape, like.ndim + axis) >= first


def _delayed(x_BGNCM):
    """Shifted by one token within the chunk, 0 at the first."""
    return jnp.pad(x_BGNCM, ((0, 0),) * 3 + ((1, 0), (0, 0)))[:, :, :, :-1]
