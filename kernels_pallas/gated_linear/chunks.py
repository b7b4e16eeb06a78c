"""What both chunked forms share: the inputs cut into chunks, and the scan over the states."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

MASKED = -1e30  # exp of it is 0, and so is its gradient


class Chunks(NamedTuple):
    """The inputs in N chunks of C tokens, H = G * R heads.

    number_NBC counts the documents begun in a chunk so far, as floats: 0 is the one that
    entered it.
    """

    q_NBGCK: jax.Array
    k_NBGCK: jax.Array
    v_NBGRCV: jax.Array
    number_NBC: jax.Array


def split(x_BT, length: int, axis: int):
    """(B, T, ...) to (N, B, ...) with the `length` tokens of a chunk as axis `axis`.

    Tokens of zeros that are missing are added in front, where with decay 1 and no reset they
    change nothing: the last token stays the last of its chunk.
    """
    batch, time = x_BT.shape[:2]
    x_BT = jnp.pad(x_BT, ((0, 0), (-time % length, 0)) + ((0, 0),) * (x_BT.ndim - 2))
    return jnp.moveaxis(x_BT.reshape(batch, -1, length, *x_BT.shape[2:]), (1, 2), (0, axis))


def by_group(x_H, groups: int, axis: int):
    """Axis `axis` of H heads as two, of G groups and R heads in each."""
    return x_H.reshape(*x_H.shape[:axis], groups, -1, *x_H.shape[axis + 1 :])


def join(o_NBGRCV, time: int):
    """(B, T, H, V): the chunks one after the other, without what `split` added."""
    chunks, batch, groups, ratio, length, value_size = o_NBGRCV.shape
    o_BNCGRV = jnp.moveaxis(o_NBGRCV, (0, 4), (1, 2))
    o_BTHV = o_BNCGRV.reshape(batch, chunks * length, groups * ratio, value_size)
    return o_BTHV[:, chunks * length - time :]


def enter(keep_NB, added_NB, s_B):
    """(final state, the state that enters each chunk) of s <- keep_n * s + added_n."""

    def step(s_B, chunk):
        keep_B, added_B = chunk
        return keep_B * s_B + added_B, s_B

    return jax.lax.scan(step, s_B, (keep_NB, added_NB))


def inclusive_sums(x):
    """Along the last axis, as a product with a triangle of ones: `jnp.cumsum` is slow on CPUs."""
    upper = jnp.triu(jnp.ones((x.shape[-1],) * 2, x.dtype))
    return jnp.matmul(x, upper, precision="highest")
