"""One decay per channel of the key: chunks are halved recursively.

The decay between two tokens is a vector, so it has to be multiplied into q and k, and a factor
exp(-sum) would overflow. Instead, a query of the right half of a block is multiplied by the decay
since the middle, a key of the left half by that up to the middle, both exp of sums <= 0, and their
product is one block of the matrix of weights. Each half is treated in the same way, so log2(C) levels
give the whole matrix, with one exp per token, channel and level. No sum is computed by subtraction,
which keeps sums and their gradients exact to rounding.
"""

import jax.numpy as jnp

from kernels_pallas.gated_linear.chunks import Chunks, enter


def attend(chunks: Chunks, g_NBGRCK, s_BGRKV, precision):
    """(o_NBGRCV, last s_BGRKV) from the state s_BGRKV."""
    q_NBGCK, k_NBGCK, v_NBGRCV, number_NBC = chunks
    q_NBG1CK, k_NBG1CK = q_NBGCK[:, :, :, None], k_NBGCK[:, :, :, None]
    weights_NBGRCC, since_NBGRCK, until_NBGRCK = pair_weights(
        q_NBG1CK, k_NBG1CK, g_NBGRCK, precision
    )
    same_NBCC = number_NBC[..., :, None] == number_NBC[..., None, :]
    weights_NBGRCC = jnp.where(same_NBCC[:, :, None, None], weights_NBGRCC, 0)
    o_NBGRCV = jnp.matmul(weights_NBGRCC, v_NBGRCV, precision=precision)

    number_NB11C1 = number_NBC[:, :, None, None, :, None]
    reaches_end = number_NB11C1 == number_NB11C1[..., -1:, :]
    from_start_NBGRCK = jnp.where(number_NB11C1 == 0, jnp.exp(since_NBGRCK), 0)
    written_NBGRCK = jnp.where(reaches_end, k_NBG1CK * jnp.exp(until_NBGRCK), 0)
    added_NBGRKV = jnp.einsum(
        "nbgrck,nbgrcv->nbgrkv", written_NBGRCK, v_NBGRCV, precision=precision
    )
    keep_NBGRK1 = from_start_NBGRCK[..., -1, :, None]
    s_BGRKV, s_NBGRKV = enter(keep_NBGRK1, added_NBGRKV, s_BGRKV)
    o_NBGRCV += jnp.matmul(from_start_NBGRCK * q_NBG1CK, s_NBGRKV, precision=precision)
    return o_NBGRCV, s_BGRKV


def pair_weights(q, k, g, precision):
    """(weights (..., C, C) without boundaries, since, until): for each token the sum of g from the
    chunk's start, its own included, and that to the chunk's end, its own excluded."""
    length = g.shape[-2]
    since, until = g, jnp.zeros_like(g)
    weights = jnp.broadcast_to(
        jnp.einsum("...ck,...ck->...c", q, k, precision=precision), g.shape[:-1]
    )[..., None, None]
    size = 1  # of the finished blocks, (..., C / size, size, size) in `weights`
    while size < length:
        since_left, since_right = _halves(since, size)
        until_left, until_right = _halves(until, size)
        query = _halves(q, size)[1] * jnp.exp(since_right)
        key = _halves(k, size)[0] * jnp.exp(until_left)
        corner = jnp.einsum("...ik,...jk->...ij", query, key, precision=precision)
        weights = weights.reshape(*corner.shape[:-2], 2, size, size)
        left, right = weights[..., 0, :, :], weights[..., 1, :, :]
        above = jnp.concatenate([left, jnp.zeros_like(corner)], axis=-1)
        weights = jnp.concatenate([above, jnp.concatenate([corner, right], axis=-1)], axis=-2)
        since = _joined(since_left, since_right + since_left[..., -1:, :], g.shape)
        whole_right = since_right[..., -1:, :]
        until = _joined(until_left + whole_right, until_right, g.shape)
        size *= 2
    return weights[..., 0, :, :], since, until


def _halves(x, size):
    """The left and the right halves of all blocks of 2 * size tokens: (..., blocks, size, K)."""
    pairs = x.reshape(*x.shape[:-2], x.shape[-2] // (2 * size), 2, size, x.shape[-1])
    return pairs[..., 0, :, :], pairs[..., 1, :, :]


def _joined(left, right, shape):
    return jnp.stack([left, right], axis=-3).reshape(shape)
