"""What a shard of time fetches from the shards to its left.

Everything here is called inside `jax.shard_map` with time split over the mesh axis `axis`: shard i
holds the tokens [i T, (i + 1) T) of every row, T tokens a shard.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from kernels_pallas import segments


def from_left(x: Array, hops: int, axis: str) -> Array:
    """`x` of the shard `hops` to the left; zeros (segment id 0) if there is none."""
    size = jax.lax.axis_size(axis)
    if hops >= size:
        return jnp.zeros_like(x)
    return jax.lax.ppermute(x, axis, [(i, i + hops) for i in range(size - hops)])


def of_first_shard(first: Array, others: Array, axis: str) -> Array:
    """`first` on the shard that begins the rows, `others` on the rest."""
    return jnp.where(jax.lax.axis_index(axis) == 0, first, others)


def of_last_shard(x: Array, axis: str) -> Array:
    """The `x` of the last shard, on every shard; costs an all-reduce of the size of x."""
    is_last = jax.lax.axis_index(axis) == jax.lax.axis_size(axis) - 1
    return jax.lax.psum(jnp.where(is_last, x, jnp.zeros_like(x)), axis)


def entering_state(
    transition: Array, end: Array, first: Array, multiply: Callable, axis: str
) -> Array:
    """The state that enters this shard.

    Arguments:
      transition, end: the shard's A and B.
      first: the state that enters the first shard.
      multiply: (A, A or B) -> their product; associative, and linear in the second.
      axis: the mesh axis that splits time.
    """
    # Each shard starts with its left neighbour's map, the first one with the constant `first`, so the
    # composition of all maps up to a shard is its entering state.
    transition, end = from_left(transition, 1, axis), from_left(end, 1, axis)
    end = of_first_shard(first, end, axis)
    hops = 1
    while hops < jax.lax.axis_size(axis):
        # Beyond the first shard from_left returns A = B = 0, which is right: there A is already 0.
        left, left_end = from_left(transition, hops, axis), from_left(end, hops, axis)
        end = multiply(transition, left_end) + end
        transition = multiply(transition, left)
        hops *= 2
    return end


def halo(x_BT: Array, tokens: int, axis: str, before_BS: Array | None = None) -> Array:
    """The `tokens` tokens directly before this shard's first one, oldest first.

    They may span several shards; each sends its part directly to the shard that needs it.

    Arguments:
      x_BT: this shard's tokens, (B, T, ...).
      tokens: how many.
      axis: the mesh axis that splits time.
      before_BS: the S tokens directly before the rows, (B, S, ...), the same on every shard.

    Returns (B, tokens, ...); zeros (empty slots, for segment ids) where there is no token.
    """
    time = x_BT.shape[1]
    pieces = []
    for hops in range(1, -(-tokens // time) + 1):
        first = max(0, hops * time - tokens)
        pieces.append(from_left(x_BT[:, first:], hops, axis))
    halo_BS = jnp.concatenate([x_BT[:, :0], *reversed(pieces)], axis=1)
    if before_BS is None or before_BS.shape[1] == 0 or tokens == 0:
        return halo_BS
    # Slot s of shard i has the time i T - tokens + s; if negative, it is slot i T + s of `before`.
    slots = before_BS.shape[1]
    before_BS = before_BS[:, max(0, slots - tokens) :].astype(x_BT.dtype)
    missing = [(0, 0), (max(0, tokens - slots), tokens)] + [(0, 0)] * (x_BT.ndim - 2)
    start = jnp.minimum(jax.lax.axis_index(axis) * time, tokens)
    before_BS = jax.lax.dynamic_slice_in_dim(jnp.pad(before_BS, missing), start, tokens, 1)
    is_before_S = jnp.arange(tokens, dtype=jnp.int32) < tokens - start
    return jnp.where(is_before_S.reshape(1, -1, *[1] * (x_BT.ndim - 2)), before_BS, halo_BS)


def delay(tokens: PyTree, by: int, *, axis: str | None = None) -> PyTree:
    """Shifts every (B, T, ...) array of `tokens` right by `by` tokens, filling with zeros.

    With `axis` the arrays are this shard's tokens of rows that are split over the mesh axis.
    """

    def one(x_BT: Array) -> Array:
        if axis is None:
            before_BS = jnp.zeros((x_BT.shape[0], by, *x_BT.shape[2:]), x_BT.dtype)
        else:
            before_BS = halo(x_BT, by, axis)
        return jnp.concatenate([before_BS, x_BT], axis=1)[:, : x_BT.shape[1]]

    return jax.tree.map(one, tokens)


def ids_before(segment_ids_BT: Int[Array, "B T"], axis: str, first_B=None) -> Int[Array, "B"]:
    """The segment id of the token directly before this shard's first one; on the first shard
    `first_B` (None = 0)."""
    before_B = from_left(segment_ids_BT[:, -1], 1, axis)
    return before_B if first_B is None else of_first_shard(first_B, before_B, axis)


def document_numbers(segment_ids_BT: Int[Array, "B T"], axis: str) -> Int[Array, "B T"]:
    """Ids that are unique per document of a row, over all shards; padding stays 0.

    They count documents; shards exchange one number per row.
    """
    before_B = ids_before(segment_ids_BT, axis)
    starts_BT = segments.document_starts(jax.lax.optimization_barrier(segment_ids_BT), before_B)
    count_BT = jnp.cumsum(starts_BT, axis=1, dtype=jnp.int32)
    counts_PB = jax.lax.all_gather(count_BT[:, -1], axis)
    is_left_P = jnp.arange(counts_PB.shape[0]) < jax.lax.axis_index(axis)
    left_B = jnp.sum(jnp.where(is_left_P[:, None], counts_PB, 0), axis=0, dtype=jnp.int32)
    return jnp.where(segment_ids_BT == 0, 0, count_BT + left_B[:, None])
