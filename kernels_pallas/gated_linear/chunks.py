"""What both chunked forms share: the inputs cut into chunks, and the scan over the states."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

MASKED = -1e30  # exp of it is 0, and so is its gradient


class Chunks(NamedTuple):
    """The inputs in N chunks of C tokens, H = G * R heads.

    log_decay is (N, B, G, R, C), or (N, B, G, R, C, K). number_NBC counts the documents begun
    in a chunk so far, as floats: 0 is the one that entered it.
    """

    q_NBGCK: jax.Array
    k_NBGCK: jax.Array
    v_NBGRCV: jax.Array
    log_decay: jax.Array
    number_NBC: jax.Array


def cut(q_BTGK, k_BTGK, v_BTHV, log_decay, resets_BT, length: int) -> Chunks:
    """Chunks of `length` tokens.

    What is missing is added in front, where a token of zeros, decay 1 and no reset changes
    nothing: the last token stays the last of its chunk.
    """
    batch, time, heads, _ = v_BTHV.shape
    groups = k_BTGK.shape[2]
    added = -time % length

    def chunked(x_BT, axis=2):
        """(B, T, ...) to (N, B, ...) with the chunk's tokens as axis `axis`."""
        x_BT = jnp.pad(x_BT, ((0, 0), (added, 0)) + ((0, 0),) * (x_BT.ndim - 2))
        x_BNC = x_BT.reshape(batch, -1, length, *x_BT.shape[2:])
        return jnp.moveaxis(x_BNC, (1, 2), (0, axis))

    def by_group(x_BTH):
        return x_BTH.reshape(batch, time, groups, heads // groups, *x_BTH.shape[3:])

    return Chunks(
        chunked(q_BTGK, 3),
        chunked(k_BTGK, 3),
        chunked(by_group(v_BTHV), 4),
        chunked(by_group(log_decay), 4),
        inclusive_sums(chunked(resets_BT.astype(v_BTHV.dtype))),
    )


def join(o_NBGRCV, time: int):
    """(B, T, H, V): the chunks one after the other, without what `cut` added."""
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
