"""One decay per head: (Q K^T) times a matrix of decays, as in Mamba-2's SSD.

The gradient is written by hand and saves only the inputs: all matrices of a chunk are recomputed.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas.gated_linear.chunks import Chunks, enter, inclusive_sums

PART = 16  # tokens of a part of a chunk, whose sums of log-decays are computed directly


class Decays(NamedTuple):
    """Products of the decays of a chunk, 0 across a boundary.

    Sums of log-decays are computed without subtraction, as products with triangles of ones. A
    difference of two cumulative sums loses the digits of a few weak gates after a strong one, and its
    gradient, which has the same differences, loses far more.

    Attributes:
      between_NBGRCC: [i, j] over tokens j + 1 to i, 1 at i = j, 0 above it.
      from_start_NBGRC: up to each token, its own included.
      to_end_NBGRC: over the tokens after each one.
    """

    between_NBGRCC: jax.Array
    from_start_NBGRC: jax.Array
    to_end_NBGRC: jax.Array

    @classmethod
    def of(cls, g_NBGRC, number_NB11C):
        """Any leading axes in place of NBGR."""
        same_NB11CC = number_NB11C[..., :, None] == number_NB11C[..., None, :]
        from_start = jnp.exp(inclusive_sums(g_NBGRC))
        to_end = jnp.exp(_sums_after(g_NBGRC))
        return cls(
            jnp.where(same_NB11CC, _between(g_NBGRC), 0),
            jnp.where(number_NB11C == 0, from_start, 0),
            jnp.where(number_NB11C == number_NB11C[..., -1:], to_end, 0),
        )

    @property
    def keep_NBG1R1(self):
        """The decay of a state over the whole chunk."""
        return self.from_start_NBGRC[..., -1][:, :, :, None, :, None]


def _between(g_NBGRC):
    """Decays between tokens i and j. Within a part of the chunk from its sums. Between parts as the
    decay from j to the end of its part, times that of the parts between, times that from the start of
    i's part to i: C^2 products, few exponentials."""
    length = g_NBGRC.shape[-1]
    part = min(PART, length)
    g_NBGRPC = g_NBGRC.reshape(*g_NBGRC.shape[:-1], -1, part)
    # The barrier keeps XLA from fusing these into the product, where each would be computed C times.
    inside_NBGRPCC, parts_NBGRPP, lead_NBGRPC, follow_NBGRPC = jax.lax.optimization_barrier(
        (
            jnp.tril(jnp.exp(_sums_between(g_NBGRPC, own=True))),
            jnp.tril(jnp.exp(_sums_between(jnp.sum(g_NBGRPC, axis=-1), own=False)), -1),
            jnp.exp(inclusive_sums(g_NBGRPC)),
            jnp.exp(_sums_after(g_NBGRPC)),
        )
    )
    across_NBGRPCPC = (
        lead_NBGRPC[..., None, None]
        * parts_NBGRPP[..., :, None, :, None]
        * follow_NBGRPC[..., None, None, :, :]
    )
    same_PP = jnp.eye(length // part, dtype=bool)[None, None, None, None, :, None, :, None]
    products = jnp.where(same_PP, inside_NBGRPCC[..., None, :], across_NBGRPCPC)
    return products.reshape(*g_NBGRC.shape, length)


def _sums_after(g):
    """Sums along the last axis over the entries after each one."""
    return jnp.matmul(g, _triangle(g, below=1), precision="highest")


def _sums_between(g, own: bool):
    """[..., i, j]: the sum over the entries after j and up to i, with or without i's `own`."""
    after = jnp.einsum("...s,sj->...sj", g, _triangle(g, below=1), precision="highest")
    return jnp.matmul(_triangle(g, below=0 if own else 1), after, precision="highest")


def _triangle(g, below: int):
    """(C, C) of ones where row - column >= `below`, zeros elsewhere, for C entries of `g`."""
    return jnp.tril(jnp.ones((g.shape[-1],) * 2, g.dtype), -below)


def no_lower_than_underflow(g):
    """g, with all entries whose exp is 0 replaced by one finite number whose exp is 0."""
    return jnp.maximum(g, -104 if g.dtype == jnp.float32 else -746)


def attend(chunks: Chunks, g_NBGRC, s_BGRKV, precision):
    """(o_NBGRCV, last s_BGRKV) from the state s_BGRKV."""
    # The barrier keeps XLA's CPU backend from repeating the transposes for every product.
    chunks = jax.lax.optimization_barrier(chunks)
    return _attend(precision, chunks, no_lower_than_underflow(g_NBGRC), s_BGRKV)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(precision, chunks, g_NBGRC, s_BGRKV):
    decays, scores_NBGCC = _pairs(precision, chunks, g_NBGRC)
    weights_NBGRCC = scores_NBGCC[:, :, :, None] * decays.between_NBGRCC
    o_NBGRCV = jnp.matmul(weights_NBGRCC, chunks.v_NBGRCV, precision=precision)
    s_BGKRV, s_NBGKRV = _states(precision, chunks, decays, s_BGRKV)
    read_NBGRCV = jnp.einsum("nbgck,nbgkrv->nbgrcv", chunks.q_NBGCK, s_NBGKRV, precision=precision)
    o_NBGRCV += decays.from_start_NBGRC[..., None] * read_NBGRCV
    return o_NBGRCV, jnp.swapaxes(s_BGKRV, 2, 3)


def _pairs(precision, chunks, g_NBGRC):
    """The decays, and q_i . k_j for all pairs of tokens of a chunk."""
    scores_NBGCC = jnp.einsum(
        "nbgik,nbgjk->nbgij", chunks.q_NBGCK, chunks.k_NBGCK, precision=precision
    )
    return Decays.of(g_NBGRC, chunks.number_NBC[:, :, None, None]), scores_NBGCC


def _states(precision, chunks, decays, s_BGRKV):
    """(last state, state before each chunk)."""
    reaching_NBGRCV = decays.to_end_NBGRC[..., None] * chunks.v_NBGRCV
    added_NBGKRV = jnp.einsum(
        "nbgck,nbgrcv->nbgkrv", chunks.k_NBGCK, reaching_NBGRCV, precision=precision
    )
    return enter(decays.keep_NBG1R1, added_NBGKRV, jnp.swapaxes(s_BGRKV, 2, 3))


def _forward(precision, *inputs):
    return _attend(precision, *inputs), inputs


def _backward(precision, inputs, cotangents):
    """Cotangents are named d_*; those of log-decays l are d_* = (cotangent of exp l) * exp l."""
    chunks, g_NBGRC, s_BGRKV = inputs
    q_NBGCK, k_NBGCK, v_NBGRCV, number_NBC = chunks
    d_o_NBGRCV, d_s_BGRKV = jax.lax.optimization_barrier(cotangents)
    einsum = functools.partial(jnp.einsum, precision=precision)

    # --- pairs of a chunk ------------------------------------------------------------------------
    decays, scores_NBGCC = _pairs(precision, chunks, g_NBGRC)
    scores_NBG1CC = scores_NBGCC[:, :, :, None]
    d_weights_NBGRCC = einsum("nbgriv,nbgrjv->nbgrij", d_o_NBGRCV, v_NBGRCV)
    weights_NBGRCC = scores_NBG1CC * decays.between_NBGRCC
    d_v_NBGRCV = einsum("nbgrij,nbgriv->nbgrjv", weights_NBGRCC, d_o_NBGRCV)
    d_by_head_NBGRCC = d_weights_NBGRCC * decays.between_NBGRCC
    d_scores_NBGCC = jnp.sum(d_by_head_NBGRCC, axis=3)
    d_q_NBGCK = einsum("nbgij,nbgjk->nbgik", d_scores_NBGCC, k_NBGCK)
    d_k_NBGCK = einsum("nbgij,nbgik->nbgjk", d_scores_NBGCC, q_NBGCK)
    # A token's weight on itself is 1, and no decay gets a gradient from it.
    d_between_NBGRCC = jnp.tril(d_by_head_NBGRCC * scores_NBG1CC, -1)

    # --- states ----------------------------------------------------------------------------------
    _, s_NBGKRV = _states(precision, chunks, decays, s_BGRKV)
    d_read_NBGRCV = decays.from_start_NBGRC[..., None] * d_o_NBGRCV
    d_q_by_head_NBGRCK = einsum("nbgrcv,nbgkrv->nbgrck", d_read_NBGRCV, s_NBGKRV)
    d_q_NBGCK += jnp.sum(d_q_by_head_NBGRCK, axis=3)
    d_from_start_NBGRC = jnp.sum(d_q_by_head_NBGRCK * q_NBGCK[:, :, :, None], axis=-1)

    def step(d_s_BGKRV, chunk):
        keep_BG1R1, d_entering_BGKRV = chunk
        return keep_BG1R1 * d_s_BGKRV + d_entering_BGKRV, d_s_BGKRV

    d_entering_NBGKRV = einsum("nbgck,nbgrcv->nbgkrv", q_NBGCK, d_read_NBGRCV)
    d_s_BGKRV, d_added_NBGKRV = jax.lax.scan(
        step, jnp.swapaxes(d_s_BGRKV, 2, 3), (decays.keep_NBG1R1, d_entering_NBGKRV), reverse=True
    )
    d_keep_NBGR = jnp.sum(d_added_NBGKRV * s_NBGKRV * decays.keep_NBG1R1, axis=(3, 5))
    to_end_NBGRC1 = decays.to_end_NBGRC[..., None]
    d_k_NBGCK += einsum("nbgrcv,nbgkrv->nbgck", to_end_NBGRC1 * v_NBGRCV, d_added_NBGKRV)
    d_reaching_NBGRCV = to_end_NBGRC1 * einsum("nbgck,nbgkrv->nbgrcv", k_NBGCK, d_added_NBGKRV)
    d_v_NBGRCV += d_reaching_NBGRCV
    d_to_end_NBGRC = jnp.sum(d_reaching_NBGRCV * v_NBGRCV, axis=-1)

    # --- decays: each gets the gradients of all sums that contain it ---------------------------
    d_from_start_NBGRC = d_from_start_NBGRC.at[..., -1].add(d_keep_NBGR)
    d_g_NBGRC = (
        _sums_of_spans(d_between_NBGRCC)
        + jnp.matmul(d_from_start_NBGRC, _triangle(g_NBGRC, below=0), precision="highest")
        + jnp.matmul(d_to_end_NBGRC, _triangle(g_NBGRC, below=1).T, precision="highest")
    )
    d_chunks = Chunks(d_q_NBGCK, d_k_NBGCK, d_v_NBGRCV, jnp.zeros_like(number_NBC))
    return d_chunks, d_g_NBGRC, jnp.swapaxes(d_s_BGKRV, 2, 3)


def _sums_of_spans(d_CC):
    """[..., s]: the sum over [i, j] of all spans j < s <= i."""
    # The barrier keeps XLA's CPU backend from recomputing the gradients inside the product.
    d_CC = jax.lax.optimization_barrier(d_CC)
    upper_CC = jnp.broadcast_to(_triangle(d_CC, below=0).T, d_CC.shape)
    after_CC = jnp.matmul(upper_CC, d_CC, precision="highest")  # [s, j]: s <= i
    return jnp.sum(jnp.tril(after_CC, -1), axis=-1)


_attend.defvjp(_forward, _backward)
