"""Gated slots in chunks: matrix products over pairs of tokens, the slots only between chunks.

Slot m of query t sees key j <= t through w_t,j,m = write_j,m times the gates of tokens j+1..t.
Such a decay for every (t, j, m) is too much to hold and does not factor over a whole chunk:
exp(b_t) exp(-b_j) overflows. It does factor about any token between j and t, into two products of
gates, both at most 1. So a chunk of C tokens is cut in half again and again: at the level of
halves of h tokens, the queries of each right half meet the keys of the left half beside it,

    w_t,j,m = (gates of the right half up to t)_m * (gates of the left half after j)_m write_j,m,

and each pair j < t meets at exactly one level. The products of gates of one level come from those
of the level below by one multiplication. Nothing is divided by a gate, no large sums of log-gates
are subtracted, and a document's start is a gate of 0.

Both passes, logits from keys and outputs from values, are such sums; so are their gradients.
One custom_vjp saves the chunks' entering slots and the logits.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Dimensions: N chunks, C tokens of a chunk, R query heads per key/value head, M slots; h tokens of
# a half, J pairs of halves in a chunk. Rows of a matrix are (token, query head).

MAX_CHUNK = 64


def chunk_length(time: int) -> int:
    """Tokens per chunk, a power of two: no more than hold the sequence, at most MAX_CHUNK."""
    return min(MAX_CHUNK, 1 << max(0, time - 1).bit_length())


def gated_slots(
    q_BTGRK, k_BTGK, v_BTGV, log_gate_BTGM, write_BTGM, resets_BT, k_slots_BGMK, v_slots_BGMV,
    *, scale, precision,
):  # fmt: skip
    """(out_BTGRV, lse_BTGR, last k slots, last v slots); at a reset the slots before count as 0."""
    time = q_BTGRK.shape[1]
    length = chunk_length(time)
    chunks = -(-time // length)

    def cut(x_BTG):
        """(B, T, G, ...) -> (B, G, N, C, ...); added tokens keep the slots as they are."""
        padding = ((0, 0), (0, chunks * length - time)) + ((0, 0),) * (x_BTG.ndim - 2)
        x_BGT = jnp.moveaxis(jnp.pad(x_BTG, padding), 2, 1)
        return x_BGT.reshape(*x_BGT.shape[:2], chunks, length, *x_BGT.shape[3:])

    def uncut(x_BGNC):
        x_BGT = x_BGNC.reshape(*x_BGNC.shape[:2], chunks * length, *x_BGNC.shape[4:])
        return jnp.moveaxis(x_BGT[:, :, :time], 1, 2)

    kv_BTGZ = jnp.concatenate([k_BTGK, v_BTGV], axis=-1)
    slots_BGMZ = jnp.concatenate([k_slots_BGMK, v_slots_BGMV], axis=-1)
    arrays = (q_BTGRK * scale, kv_BTGZ, log_gate_BTGM, write_BTGM, resets_BT[:, :, None])
    out_BGNCRV, lse_BGNCR, slots_BGMZ = _slots(*map(cut, arrays), slots_BGMZ, precision)
    k_slots_BGMK, v_slots_BGMV = jnp.split(slots_BGMZ, [k_BTGK.shape[-1]], axis=-1)
    return uncut(out_BGNCRV), uncut(lse_BGNCR), k_slots_BGMK, v_slots_BGMV


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _slots(q_BGNCRK, kv_BGNCZ, log_gate_BGNCM, write_BGNCM, resets_B1NC, slots_BGMZ, precision):
    """Keys and values lie side by side in Z = K + V, in tokens and in slots."""
    arguments = (q_BGNCRK, kv_BGNCZ, log_gate_BGNCM, write_BGNCM, resets_B1NC, slots_BGMZ)
    return _forward(*arguments, precision)[0]


def _forward(q_BGNCRK, kv_BGNCZ, log_gate_BGNCM, write_BGNCM, resets_B1NC, slots_BGMZ, precision):
    dot = functools.partial(jnp.matmul, precision=precision)
    k_BGNCK, v_BGNCV = _split(kv_BGNCZ, q_BGNCRK)
    decays = _decays(log_gate_BGNCM, resets_B1NC)
    levels = list(_levels(decays, write_BGNCM))

    added_BGNMZ = dot(_transposed(write_BGNCM * decays.suffix_BGNCM), kv_BGNCZ)
    enter_BGNMZ, last_BGMZ = _carry(decays.total_BGNM, added_BGNMZ, slots_BGMZ)
    k_slots_BGNMK, v_slots_BGNMV = _split(enter_BGNMZ, q_BGNCRK)

    earlier_BGNCRM = _read(q_BGNCRK, k_BGNCK, k_slots_BGNMK, decays, levels, dot)
    own_BGNCR = jnp.sum(q_BGNCRK * k_BGNCK[..., None, :], axis=-1)
    logits_BGNCRM = earlier_BGNCRM + own_BGNCR[..., None] * write_BGNCM[..., None, :]
    lse_BGNCR = jax.nn.logsumexp(logits_BGNCRM, axis=-1)
    p_BGNCRM = jnp.exp(logits_BGNCRM - lse_BGNCR[..., None])
    out_BGNCRV = _expand(p_BGNCRM, v_BGNCV, v_slots_BGNMV, write_BGNCM, decays, levels, dot)

    residuals = (q_BGNCRK, kv_BGNCZ, log_gate_BGNCM, write_BGNCM, resets_B1NC)
    residuals += (enter_BGNMZ, earlier_BGNCRM, out_BGNCRV, lse_BGNCR)
    return (out_BGNCRV, lse_BGNCR, last_BGMZ), residuals


def _backward(precision, residuals, cotangents):
    q_BGNCRK, kv_BGNCZ, log_gate_BGNCM, write_BGNCM, resets_B1NC = residuals[:5]
    enter_BGNMZ, earlier_BGNCRM, out_BGNCRV, lse_BGNCR = residuals[5:]
    dout_BGNCRV, dlse_BGNCR, dlast_BGMZ = cotangents
    dot = functools.partial(jnp.matmul, precision=precision)
    k_BGNCK, v_BGNCV = _split(kv_BGNCZ, q_BGNCRK)
    k_slots_BGNMK, v_slots_BGNMV = _split(enter_BGNMZ, q_BGNCRK)
    decays = _decays(log_gate_BGNCM, resets_B1NC)
    levels = list(_levels(decays, write_BGNCM))
    write_BGNC1M = write_BGNCM[..., None, :]

    # The softmax: dlogits = p (dp - sum p dp + dlse), dp_m = dout . (value slot m).
    own_BGNCR = jnp.sum(q_BGNCRK * k_BGNCK[..., None, :], axis=-1)
    down_BGNCR = jnp.sum(dout_BGNCRV * v_BGNCV[..., None, :], axis=-1)
    logits_BGNCRM = earlier_BGNCRM + own_BGNCR[..., None] * write_BGNC1M
    p_BGNCRM = jnp.exp(logits_BGNCRM - lse_BGNCR[..., None])
    dearlier_BGNCRM = _read(dout_BGNCRV, v_BGNCV, v_slots_BGNMV, decays, levels, dot)
    dp_BGNCRM = dearlier_BGNCRM + down_BGNCR[..., None] * write_BGNC1M
    delta_BGNCR = jnp.sum(dout_BGNCRV * out_BGNCRV, axis=-1) - dlse_BGNCR
    dlogits_BGNCRM = p_BGNCRM * (dp_BGNCRM - delta_BGNCR[..., None])

    # The queries read keys as the outputs read values.
    dq_BGNCRK = _expand(dlogits_BGNCRM, k_BGNCK, k_slots_BGNMK, write_BGNCM, decays, levels, dot)

    # The slots' gradients run back over the chunks.
    prefix_BGNC1M = decays.prefix_BGNCM[..., None, :]
    rows = [_merge_rows(x) for x in (q_BGNCRK, dout_BGNCRV)]
    weights = [_merge_rows(x * prefix_BGNC1M) for x in (dlogits_BGNCRM, p_BGNCRM)]
    read_BGNMZ = jnp.concatenate([dot(_transposed(w), x) for w, x in zip(weights, rows)], axis=-1)
    dleave_BGNMZ, dslots_BGMZ = _carry(decays.total_BGNM, read_BGNMZ, dlast_BGMZ, reverse=True)

    # Of each token: what reached the end of its chunk, itself, and the pairs of every level.
    left_BGNCM = write_BGNCM * decays.suffix_BGNCM
    dkv_BGNCZ = dot(left_BGNCM, dleave_BGNMZ)
    dwrite_end_BGNCM = decays.suffix_BGNCM * dot(kv_BGNCZ, _transposed(dleave_BGNMZ))
    own_weights = [
        jnp.sum(x * write_BGNC1M, axis=-1, keepdims=True) for x in (dlogits_BGNCRM, p_BGNCRM)
    ]
    dkv_BGNCZ += jnp.concatenate(
        [jnp.sum(w * x, axis=-2) for w, x in zip(own_weights, (q_BGNCRK, dout_BGNCRV))], axis=-1
    )
    dwrite_own_BGNCM = jnp.sum(
        own_BGNCR[..., None] * dlogits_BGNCRM + down_BGNCR[..., None] * p_BGNCRM, axis=-2
    )
    dwrite_BGNCM = jnp.zeros_like(write_BGNCM)
    for level in levels:
        dkv_JhZ, dwrite_JhM = 0, 0
        parts = []
        for x_BGNCR, w_BGNCRM, y_BGNC in (
            (q_BGNCRK, dlogits_BGNCRM, k_BGNCK),
            (dout_BGNCRV, p_BGNCRM, v_BGNCV),
        ):
            x_Jx = level.right_rows(x_BGNCR)
            w_JxM = level.decayed_rows(w_BGNCRM)
            parts.append(dot(_transposed(dot(w_JxM, level.written_T)), x_Jx))
            dwrite_JhM += dot(_transposed(dot(x_Jx, _transposed(level.left(y_BGNC)))), w_JxM)
        dkv_JhZ = jnp.concatenate(parts, axis=-1)
        dkv_BGNCZ = level.add_left(dkv_BGNCZ, dkv_JhZ)
        dwrite_BGNCM = level.add_left(dwrite_BGNCM, dwrite_JhM * level.suffix_JhM)

    # d log_gate_i = all that decays through token i: pairs j < i <= t within the chunk, as the
    # difference of what ends and what begins there, summed from the chunk's end; ... into the
    # chunk's end; and from its beginning to its end. Own pairs do not decay and are left out.
    ends_BGNCM = jnp.sum(dlogits_BGNCRM * earlier_BGNCRM + p_BGNCRM * dearlier_BGNCRM, axis=-2)
    through_BGNCM = jax.lax.cumsum(ends_BGNCM - write_BGNCM * dwrite_BGNCM, axis=3, reverse=True)
    to_end_BGNCM = write_BGNCM * dwrite_end_BGNCM
    through_BGNCM += jax.lax.cumsum(_delayed(to_end_BGNCM), axis=3)
    across_BGNM = decays.total_BGNM * jnp.sum(dleave_BGNMZ * enter_BGNMZ, axis=-1)
    through_BGNCM += across_BGNM[:, :, :, None]
    dlog_gate_BGNCM = jnp.where(resets_B1NC[..., None], 0, through_BGNCM)
    dwrite_BGNCM += dwrite_own_BGNCM + dwrite_end_BGNCM
    return dq_BGNCRK, dkv_BGNCZ, dlog_gate_BGNCM, dwrite_BGNCM, None, dslots_BGMZ


_slots.defvjp(_forward, _backward)


class _Decays(NamedTuple):
    """Products of gates within a chunk: up to a token (its own included), after it, of all; and
    the first two within the halves of each level."""

    prefix_BGNCM: jax.Array
    suffix_BGNCM: jax.Array
    total_BGNM: jax.Array
    halves: list[tuple[jax.Array, jax.Array]]


def _decays(log_gate_BGNCM, resets_B1NC) -> _Decays:
    prefix = jnp.where(resets_B1NC[..., None], 0, jnp.exp(log_gate_BGNCM))
    suffix, total = jnp.ones_like(prefix), prefix
    halves, half = [], 1
    while half < prefix.shape[3]:
        (prefix_left, prefix_right), (suffix_left, suffix_right) = (
            _halves(prefix, half), _halves(suffix, half),
        )  # fmt: skip
        total_left, total_right = _halves(total, 1)
        halves.append((prefix_right, suffix_left))
        prefix = _join(prefix_left, prefix_right * total_left)
        suffix = _join(suffix_left * total_right, suffix_right)
        total = (total_left * total_right)[..., 0, :]
        half *= 2
    return _Decays(prefix, suffix, total[..., 0, :], halves)


class _Level:
    """The pairs of neighbouring halves of `half` tokens: left keys and right queries meet."""

    def __init__(self, half, prefix_JhM, suffix_JhM, write_BGNCM):
        self.half, self.prefix_JhM, self.suffix_JhM = half, prefix_JhM, suffix_JhM
        self.written_JhM = self.left(write_BGNCM) * suffix_JhM
        self.written_T = _transposed(self.written_JhM)

    def left(self, x_BGNCM):
        return _halves(x_BGNCM, self.half)[0]

    def right_rows(self, x_BGNCRK):
        return _merge_rows(_halves(x_BGNCRK, self.half)[1])

    def decayed_rows(self, x_BGNCRM):
        """Weights on slots at the queries, carried back to the middle."""
        return _merge_rows(_halves(x_BGNCRM, self.half)[1] * self.prefix_JhM[..., None, :])

    def add_left(self, x_BGNCM, part_JhM):
        left, right = _halves(x_BGNCM, self.half)
        return _join(left + part_JhM, right)

    def add_right_rows(self, x_BGNCRM, part_JhRM):
        left, right = _halves(x_BGNCRM, self.half)
        return _join(left, right + part_JhRM.reshape(right.shape))


def _levels(decays, write_BGNCM):
    for power, (prefix_JhM, suffix_JhM) in enumerate(decays.halves):
        yield _Level(2**power, prefix_JhM, suffix_JhM, write_BGNCM)


def _read(x_BGNCRK, y_BGNCK, slots_BGNMK, decays, levels, dot):
    """x_t . slots_t of the slots filled with y, without token t's own write: (B, G, N, C, R, M)."""
    entered = dot(_merge_rows(x_BGNCRK), _transposed(slots_BGNMK))
    entered_BGNCRM = entered.reshape(*x_BGNCRK.shape[:-1], -1) * decays.prefix_BGNCM[..., None, :]
    for level in levels:
        pairs = dot(level.right_rows(x_BGNCRK), _transposed(level.left(y_BGNCK)))
        part = dot(pairs, level.written_JhM)
        part = part.reshape(*level.prefix_JhM.shape[:-1], -1, part.shape[-1])
        entered_BGNCRM = level.add_right_rows(
            entered_BGNCRM, part * level.prefix_JhM[..., None, :]
        )
    return entered_BGNCRM


def _expand(w_BGNCRM, y_BGNCK, slots_BGNMK, write_BGNCM, decays, levels, dot):
    """w_t^T slots_t of the slots filled with y, token t's own write included: (..., R, K)."""
    prefix_BGNC1M = decays.prefix_BGNCM[..., None, :]
    x = dot(_merge_rows(w_BGNCRM * prefix_BGNC1M), slots_BGNMK)
    own_BGNCR1 = jnp.sum(w_BGNCRM * write_BGNCM[..., None, :], axis=-1, keepdims=True)
    x_BGNCRK = x.reshape(*w_BGNCRM.shape[:-1], -1) + own_BGNCR1 * y_BGNCK[..., None, :]
    for level in levels:
        pairs = dot(level.decayed_rows(w_BGNCRM), level.written_T)
        x_BGNCRK = level.add_right_rows(x_BGNCRK, dot(pairs, level.left(y_BGNCK)))
    return x_BGNCRK


def _carry(total_BGNM, added_BGNMZ, first_BGMZ, reverse=False):
    """The slots before each chunk (reverse: after it), and after the last (before the first)."""

    def step(slots_BGMZ, chunk):
        total_BGM, added_BGMZ = chunk
        return total_BGM[..., None] * slots_BGMZ + added_BGMZ, slots_BGMZ

    chunks = jnp.moveaxis(total_BGNM, 2, 0), jnp.moveaxis(added_BGNMZ, 2, 0)
    last_BGMZ, slots_NBGMZ = jax.lax.scan(step, first_BGMZ, chunks, reverse=reverse)
    return jnp.moveaxis(slots_NBGMZ, 0, 2), last_BGMZ


def _split(x_Z, q_BGNCRK):
    """Keys and values, or the slots of each."""
    size = q_BGNCRK.shape[-1]
    return x_Z[..., :size], x_Z[..., size:]


def _halves(x, half):
    """Left and right halves, each (B, G, N, J, half, ...), of an array (B, G, N, C, ...)."""
    x = x.reshape(*x.shape[:3], -1, 2, half, *x.shape[4:])
    return x[:, :, :, :, 0], x[:, :, :, :, 1]


def _join(left, right):
    """The inverse of `_halves`."""
    x = jnp.stack([left, right], axis=4)
    return jax.lax.optimization_barrier(x.reshape(*x.shape[:3], -1, *x.shape[6:]))


def _merge_rows(x):
    """(..., h, R, K) -> (..., h R, K)."""
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


def _transposed(x):
    return jnp.swapaxes(x, -1, -2)


def _delayed(x_BGNCM):
    """Of each token what stood one before it in its chunk, 0 at the first."""
    return jnp.pad(x_BGNCM, ((0, 0),) * 3 + ((1, 0), (0, 0)))[:, :, :, :-1]
