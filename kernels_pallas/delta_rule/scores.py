"""Decayed products of queries and keys within chunks: no positive exponent, no cancellation.

The decay from after token j to token i is exp(sum of log decays over j+1..i). The sum is never a
difference of cumulative sums: exp(-cumsum) overflows, and after a strong gate the difference has no
correct digits.

With one gate per head, all sums of a chunk are one product with a matrix of zeros and ones, which adds
the log decays of j+1..i alone. With one per channel that product would cost more than the rest. There,
chunks are halved recursively: for a pair in different halves, the sum is that from j to the middle plus
that from the middle to i, both <= 0.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Documents(NamedTuple):
    """Masks over the C tokens of a chunk, (N, B, 1, 1, C, C) and (N, B, 1, 1, C, 1).

    Attributes:
      same: tokens i and j belong to one document.
      entered: the token belongs to the document of the chunk's entering state.
      left: the token belongs to the document of the chunk's last token.
    """

    same: jax.Array
    entered: jax.Array
    left: jax.Array


class Scores(NamedTuple):
    """The products and decays of a chunk, (N, B, G, R or 1, C, ...).

    Attributes:
      keys: e_i . w_ij k_j for j < i, 0 elsewhere; e is k, or the erase key.
      queries: q_i . w_ij k_j for j <= i, 0 elsewhere.
      decay_in: decay from before the chunk to token i; last axis 1 or K.
      decay_out: decay from after token i to the chunk's end; last axis 1 or K.
    """

    keys: jax.Array
    queries: jax.Array
    decay_in: jax.Array
    decay_out: jax.Array


def of(q, k, log_decay, grams, documents: Documents, precision, erase=None) -> Scores:
    """Scores of q, k, erase (N, B, G, 1, C, K) under log_decay (N, B, G, R, C, 1 or K) or None.

    `erase` is None where it is k. `grams` is `grams_of(q, k, log_decay, precision, erase)`.
    """
    if log_decay is None:
        one = jnp.ones(k.shape[:-1] + (1,), k.dtype)
        parts = *grams, one, one
    elif log_decay.shape[-1] == 1:
        decay, decay_in, decay_out = decays_per_head(log_decay[..., 0])
        parts = *(gram * decay for gram in grams), decay_in[..., None], decay_out[..., None]
    else:
        parts = _per_channel(q, k, log_decay, precision, erase)
    keys, queries, decay_in, decay_out = parts
    length = k.shape[-2]
    lower = jnp.tril(jnp.ones((length, length), bool))[None, None, None, None]
    strict = lower & ~jnp.eye(length, dtype=bool)[None, None, None, None]
    return Scores(
        jnp.where(documents.same & strict, keys, 0),
        jnp.where(documents.same & lower, queries, 0),
        jnp.where(documents.entered, decay_in, 0),
        jnp.where(documents.left, decay_out, 0),
    )


def grams_of(q, k, log_decay, precision, erase=None):
    """(e_i . k_j, q_i . k_j), or None if decays per channel belong between the two."""
    if log_decay is not None and log_decay.shape[-1] > 1:
        return None
    dot = functools.partial(jnp.matmul, precision=precision)
    k_t = jnp.swapaxes(k, -1, -2)
    return dot(k if erase is None else erase, k_t), dot(q, k_t)


def decays_per_head(log_decay):
    """exp of the sums of log decays (..., C): over j+1..i (..., C, C), up to i, and after i.

    Above the diagonal the first is 1.
    """
    length = log_decay.shape[-1]
    # A product with zeros and ones takes no infinity; the exp of this is 0 as well.
    finite = jnp.maximum(log_decay, -104 if log_decay.dtype == jnp.float32 else -746)
    up_to = jnp.where(_leading(np.tri(length, dtype=bool), finite), finite[..., None, :], 0)
    after = jnp.asarray(np.tri(length, k=-1), log_decay.dtype)  # s > j
    between = jnp.exp(jnp.matmul(up_to, after, precision="highest"))
    return between, jnp.exp(jnp.sum(up_to, axis=-1)), between[..., -1, :]


def _leading(mask: np.ndarray, x):
    """The mask (C, C) with as many leading axes as x (..., C) has."""
    return mask.reshape((1,) * (x.ndim - 1) + mask.shape)


def _per_channel(q, k, log_decay, precision, erase=None):
    """One gate per channel: a product of decayed queries and keys for each pair of halves."""
    q, k, *e = (
        jnp.broadcast_to(x, log_decay.shape)[..., None, :] for x in (q, k, erase) if x is not None
    )
    queries = jnp.sum(q * k, axis=-1, keepdims=True)
    keys = jnp.zeros_like(queries)
    dot = functools.partial(jnp.matmul, precision=precision)
    for half in _halves(log_decay):
        (k_first, k_second), (_, q_second) = pairs(k), pairs(q)
        e_second = pairs(e[0])[1] if e else k_second
        k_first_t = jnp.swapaxes(k_first * jnp.exp(half.onwards), -1, -2)
        up_to = jnp.exp(half.up_to)
        keys = merge(keys, dot(e_second * up_to, k_first_t))
        queries = merge(queries, dot(q_second * up_to, k_first_t))
        q, k, *e = (x.reshape(half.joined + x.shape[-1:]) for x in (q, k, *e))
    return keys[..., 0, :, :], queries[..., 0, :, :], *_ends(log_decay)


class _Half(NamedTuple):
    """Sums of log decays in pairs of neighbouring blocks of b tokens, (..., n, b, K).

    Attributes:
      onwards: from after a token of the first block to that block's end.
      up_to: from the start of the second block to a token of it, its own included.
    """

    onwards: jax.Array
    up_to: jax.Array

    @property
    def joined(self) -> tuple[int, ...]:
        """(..., n / 2, 2b), the leading axes after the pairs are joined."""
        return *self.up_to.shape[:-2], 2 * self.up_to.shape[-2]


def _halves(log_decay):
    """`_Half` for b = 1, 2, 4, ... of log_decay (..., C, K)."""
    return _sums(log_decay)[0]


def _ends(log_decay):
    """Decays from before the chunk to each token, and from after each to the chunk's end."""
    _, up_to, onwards = _sums(log_decay)
    return jnp.exp(up_to), jnp.exp(onwards)


def _sums(log_decay):
    """(every `_Half`, inclusive sums up to each token, exclusive sums onwards)."""
    halves = []
    up_to, onwards = log_decay[..., None, :], jnp.zeros_like(log_decay)[..., None, :]
    for _ in range(log_decay.shape[-2].bit_length() - 1):
        first_up, up = pairs(up_to)
        on, second_on = pairs(onwards)
        halves.append(_Half(on, up))
        up_to = jnp.concatenate([first_up, first_up[..., -1:, :] + up], axis=-2)
        onwards = jnp.concatenate([on + up[..., -1:, :], second_on], axis=-2)
    return halves, up_to[..., 0, :, :], onwards[..., 0, :, :]


def merge(blocks, below):
    """Blocks [[X, 0], [below, Y]] of size 2b from X, Y on a diagonal.

    `blocks` (..., n, b, b) has X at even and Y at odd indices; `below` is (..., n / 2, b, b).
    """
    first, second = pairs(blocks)
    top = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
    return jnp.concatenate([top, jnp.concatenate([below, second], axis=-1)], axis=-2)


def pairs(blocks):
    """The blocks (..., n, b, K) at even and at odd indices. The gradient of `split` is a
    concatenation; that of slices would be a sum of padded arrays."""
    *lead, n, size, last = blocks.shape
    first, second = jnp.split(blocks.reshape(*lead, n // 2, 2, size, last), 2, axis=-3)
    return first[..., 0, :, :], second[..., 0, :, :]
