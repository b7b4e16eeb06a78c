"""A cache of past tokens: a ring buffer that overwrites the oldest."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas import segments


class TokenCache(NamedTuple):
    """Entries of past tokens in a ring buffer of capacity S; token i is at index i % S.

    Attributes:
      entries: a tuple of arrays (B, S, ...) in the activations' dtype, e.g. keys and values.
      segment_ids_BS: int32, 0 for entries not yet written (and for padding).
      indices_S: int32, the index of the entry's token, -1 for none.
      document_start_B: int32, index of the first token of the newest token's document.
      length: int32 scalar, tokens seen.
    """

    entries: tuple[jax.Array, ...]
    segment_ids_BS: jax.Array
    indices_S: jax.Array
    document_start_B: jax.Array
    length: jax.Array


def empty(batch: int, capacity: int, shapes: tuple[tuple[int, ...], ...], dtype: Any) -> TokenCache:
    """An empty cache of `capacity` tokens; `shapes` are those of one token's entries."""
    return TokenCache(
        tuple(jnp.zeros((batch, capacity, *shape), dtype) for shape in shapes),
        jnp.zeros((batch, capacity), jnp.int32),
        jnp.full((capacity,), -1, jnp.int32),
        jnp.zeros((batch,), jnp.int32),
        jnp.int32(0),
    )


def write(
    cache: TokenCache,
    entries: tuple[jax.Array, ...],
    segment_ids_BT: jax.Array,
    window: int | None = None,
) -> TokenCache:
    """Writes the next tokens, each at its index modulo the capacity.

    Raises:
      ValueError: as `check_capacity`, for the window that later tokens see.
    """
    capacity, time = cache.segment_ids_BS.shape[1], segment_ids_BT.shape[1]
    check_capacity(capacity, time, window)
    newest_B = cache.segment_ids_BS[:, (cache.length - 1) % capacity]
    starts_BT = segments.document_starts(segment_ids_BT, newest_B)
    start_indices_BT = jnp.where(
        starts_BT, cache.length + jnp.arange(time, dtype=jnp.int32)[None, :], 0
    )
    kept = min(time, capacity)
    indices = cache.length + jnp.arange(time - kept, time, dtype=jnp.int32)
    at = indices % capacity
    return TokenCache(
        tuple(
            old.at[:, at].set(new[:, time - kept :].astype(old.dtype))
            for old, new in zip(cache.entries, entries, strict=True)
        ),
        cache.segment_ids_BS.at[:, at].set(segment_ids_BT[:, time - kept :]),
        cache.indices_S.at[at].set(indices),
        jnp.maximum(cache.document_start_B, jnp.max(start_indices_BT, axis=1)),
        cache.length + time,
    )


def check_capacity(capacity: int, time: int, window: int | None) -> None:
    """Raises ValueError for more tokens at once than the capacity.

    A capacity of a whole window takes any number: no later token sees what is overwritten.
    """
    if time > capacity and (window is None or window > capacity):
        raise ValueError(
            f"{time} tokens at once do not fit a state made for max_len {capacity}: make it for"
            " all tokens to come"
        )


def in_order(cache: TokenCache) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """(entries, segment ids) oldest first, so that the newest directly precedes the next token."""
    shift = -(cache.length % cache.segment_ids_BS.shape[1])

    def unroll(x: jax.Array) -> jax.Array:
        return jnp.roll(x, shift, axis=1)

    return tuple(unroll(x) for x in cache.entries), unroll(cache.segment_ids_BS)


def visible(
    cache: TokenCache, segment_ids_B1: jax.Array, window: int | jax.Array | None = None
) -> jax.Array:
    """bool (B, S): the entries that the token written last sees, its own included.

    Args:
      cache: with that token written.
      segment_ids_B1: the token's segment id; padding sees nothing.
      window: keys it sees at most, one number or one a sequence; None for all of its document.
    """
    first_B = cache.document_start_B
    if window is not None:
        first_B = jnp.maximum(first_B, cache.length - window)
    first_B1 = jnp.maximum(first_B, 0)[:, None]
    return (cache.indices_S[None, :] >= first_B1) & (segment_ids_B1 != 0)


def positions(cache: TokenCache) -> jax.Array:
    """int32 (B, S), oldest first: each token's index in the newest token's document.

    Values for tokens of earlier documents, which no later token sees, mean nothing.
    """
    capacity = cache.segment_ids_BS.shape[1]
    index_1S = cache.length - capacity + jnp.arange(capacity, dtype=jnp.int32)[None]
    return jnp.maximum(index_1S - cache.document_start_B[:, None], 0)
