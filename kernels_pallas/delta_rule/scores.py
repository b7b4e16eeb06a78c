"""Decayed products of queries and keys within chunks: no positive exponent, no cancellation.

The decay from after token j to token i is exp(sum of log decays over j+1..i). The sum is never a
difference of cumulative sums: exp(-cumsum) overflows, and after a strong gate the difference has no
correct digits. Instead, chunks are halved recursively: for a pair in different halves, the sum is that
from j to the middle plus that from the middle to i, both <= 0.

With one gate per head, the sums of all levels are one product with a matrix of zeros and ones. With
one per channel that product would cost as much as the rest; the sums are added level by level.
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
      keys: k_i . w_ij k_j for j < i, 0 elsewhere.
      queries: q_i . w_ij k_j for j <= i, 0 elsewhere.
      decay_in: decay from before the chunk to token i; last axis 1 or K.
      decay_out: decay from after token i to the chunk's end; last axis 1 or K.
    """

    keys: jax.Array
    queries: jax.Array
    decay_in: jax.Array
    decay_out: jax.Array


def of(q, k, log_decay, grams, documents: Documents, precision) -> Scores:
    """Scores of q, k (N, B, G, 1, C, K) under log_decay (N, B, G, R, C, 1 or K) or None.

    `grams` is `grams_of(q, k, log_decay)`.
    """
    if log_decay is None:
        one = jnp.ones(k.shape[:-1] + (1,), k.dtype)
        parts = *grams, one, one
    elif log_decay.shape[-1] == 1:
        decay, decay_in, decay_out = decays_per_head(log_decay[..., 0])
        parts = *(gram * decay for gram in grams), decay_in[..., None], decay_out[..., None]
    else:
        parts = _per_channel(q, k, log_decay, precision)
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


def grams_of(q, k, log_decay, precision):
    """(k_i . k_j, q_i . k_j), or None if decays per channel belong between the two."""
    if log_decay is not None and log_decay.shape[-1] > 1:
        return None
    dot = functools.partial(jnp.matmul, precision=precision)
    k_t = jnp.swapaxes(k, -1, -2)
    return dot(k, k_t), dot(q, k_t)


def decays_per_head(log_decay):
    """exp of the sums of log decays (..., C): over j+1..i (..., C, C), up to i, and after i.

    Above the diagonal the first is 1.
    """
    # A product with zeros and ones takes no infinity; the exp of this is 0 as well.
    finite = jnp.maximum(log_decay, -104 if log_decay.dtype == jnp.float32 else -746)
    ones = _spans(log_decay.shape[-1]).astype(log_decay.dtype)
    sums = jnp.einsum("...s,sli->...li", finite, ones, precision="highest")
    return tuple(map(jnp.exp, (_between(sums[..., :-2, :]), sums[..., -2, :], sums[..., -1, :])))


@functools.cache
def _spans(length: int) -> np.ndarray:
    """Which tokens s (C, levels + 2, C) count to the sum number l of token i.

    At the level of blocks of b tokens, in pairs: for i in a second block, from the block's start to i;
    in a first block, from after i to the block's end. Then all up to i, and all after i.
    """
    s, i = np.arange(length)[:, None], np.arange(length)
    sizes = 2 ** np.arange(length.bit_length() - 1)
    spans = [
        np.where(i & b, (s >= i - i % b) & (s <= i), (s > i) & (s < i - i % b + b)) for b in sizes
    ]
    return np.stack([*spans, s <= i, s > i], axis=1)


@functools.cache
def _pairs_of_level(length: int) -> np.ndarray:
    """(levels, C, C): j < i lie in the two blocks of a pair of that level."""
    i, j = np.arange(length)[:, None], np.arange(length)
    sizes = 2 ** np.arange(length.bit_length() - 1)[:, None, None]
    return (j < i) & (i // sizes == j // sizes + 1) & (j // sizes % 2 == 0)


@jax.custom_vjp
def _between(sums):
    """Sums over j+1..i, (..., C, C), from those of the levels (..., levels, C); 0 for j >= i."""
    length = sums.shape[-1]
    between = jnp.zeros((*sums.shape[:-2], length, length), sums.dtype)
    for level, pair in enumerate(_pairs_of_level(length)):
        by_level = sums[..., level, :]
        between = jnp.where(
            _leading(pair, between), by_level[..., :, None] + by_level[..., None, :], between
        )
    return between


def _between_backward(_, d_between):
    pairs_lij = _pairs_of_level(d_between.shape[-1])
    d = d_between[..., None, :, :]
    d = jnp.where(_leading(pairs_lij, d), d, 0)
    return (jnp.sum(d, axis=-1) + jnp.sum(d, axis=-2),)


_between.defvjp(lambda sums: (_between(sums), None), _between_backward)


def _leading(mask: np.ndarray, like):
    """The mask with as many axes as `like`."""
    return mask.reshape((1,) * (like.ndim - mask.ndim) + mask.shape)


def _per_channel(q, k, log_decay, precision):
    """One gate per channel: a product of decayed queries and keys for each pair of halves."""
    q, k = (jnp.broadcast_to(x, log_decay.shape)[..., None, :] for x in (q, k))
    queries = jnp.sum(q * k, axis=-1, keepdims=True)
    keys = jnp.zeros_like(queries)
    dot = functools.partial(jnp.matmul, precision=precision)
    for half in _halves(log_decay):
        (k_first, k_second), (_, q_second) = pairs(k), pairs(q)
        k_first_t = jnp.swapaxes(k_first * jnp.exp(half.onwards), -1, -2)
        up_to = jnp.exp(half.up_to)
        keys = merge(keys, dot(k_second * up_to, k_first_t))
        queries = merge(queries, dot(q_second * up_to, k_first_t))
        q, k = (x.reshape(half.joined + x.shape[-1:]) for x in (q, k))
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
