"""Shared by `scalar` and `channel`: the inputs cut into chunks, and the scan over the states."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

MASKED = -1e30  # exp of it is 0, and so is its gradient


class Chunks(NamedTuple):
    """The inputs in N chunks of C tokens, H = G * R heads.

    number_NBC counts the documents begun so far in the chunk, as floats: 0 is the document of the
    entering state.
    """

    q_NBGCK: jax.Array
    k_NBGCK: jax.Array
    v_NBGRCV: jax.Array
    number_NBC: jax.Array


def split(x_BT, length: int, axis: int):
    """(B, N * C, ...) to (N, B, ...) with the `length` = C tokens of a chunk as axis `axis`."""
    batch = x_BT.shape[0]
    return jnp.moveaxis(x_BT.reshape(batch, -1, length, *x_BT.shape[2:]), (1, 2), (0, axis))


def by_group(x_H, groups: int, axis: int):
    """Splits the axis `axis` of H heads into G groups of R heads."""
    return x_H.reshape(*x_H.shape[:axis], groups, -1, *x_H.shape[axis + 1 :])


def join(o_NBGRCV):
    """(B, N * C, H, V): the chunks concatenated."""
    chunks, batch, groups, ratio, length, value_size = o_NBGRCV.shape
    o_BNCGRV = jnp.moveaxis(o_NBGRCV, (0, 4), (1, 2))
    return o_BNCGRV.reshape(batch, chunks * length, groups * ratio, value_size)


def enter(keep_NB, added_NB, s_B):
    """(last state, state before each chunk) of s <- keep_n * s + added_n."""

    def step(s_B, chunk):
        keep_B, added_B = chunk
        return keep_B * s_B + added_B, s_B

    return jax.lax.scan(step, s_B, (keep_NB, added_NB))


def inclusive_sums(x):
    """Cumulative sums along the last axis, by a product with a triangle of ones: `jnp.cumsum` is slow on
    CPUs."""
    upper = jnp.triu(jnp.ones((x.shape[-1],) * 2, x.dtype))
    return jnp.matmul(x, upper, precision="highest")
