"""One decay per head: (Q K^T) times a matrix of decays, as in Mamba-2's SSD."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas.gated_linear.chunks import MASKED, Chunks, enter, inclusive_sums

PART = 16  # tokens of a chunk whose sums of log-decays are made by themselves


class TokenDecays(NamedTuple):
    """Sums of log-decays in a chunk, made by adding alone, as products with triangles of ones.

    A difference of two cumulative sums would lose to rounding what a few weak gates add behind a
    strong one, and its gradient, which is made of the same differences, loses far more.
    """

    g_NBGRC: jax.Array

    @classmethod
    def of(cls, g_NBGRC):
        return cls(_no_lower_than_underflow(g_NBGRC))

    def between(self):
        """[i, j]: the sum over tokens j + 1 to i, where j <= i.

        In parts: what follows j in its own, the parts between, and what leads to i in its own.
        Triangles for the whole chunk at once would cost as much as one more Q K^T.
        """
        length = self.g_NBGRC.shape[-1]
        part = min(PART, length)
        g_NBGRPC = self.g_NBGRC.reshape(*self.g_NBGRC.shape[:-1], -1, part)
        parts_NBGRPP = _sums_between(jnp.sum(g_NBGRPC, axis=-1), own=False)
        across_NBGRPCPC = (
            inclusive_sums(g_NBGRPC)[..., None, None]
            + parts_NBGRPP[..., :, None, :, None]
            + _sums_after(g_NBGRPC)[..., None, None, :, :]
        )
        inside_NBGRPCC = _sums_between(g_NBGRPC, own=True)
        same_PP = jnp.eye(length // part, dtype=bool)[None, None, None, None, :, None, :, None]
        sums = jnp.where(same_PP, inside_NBGRPCC[..., None, :], across_NBGRPCPC)
        return sums.reshape(*self.g_NBGRC.shape, length)

    def to_end(self):
        """The sum over the tokens after each one."""
        return _sums_after(self.g_NBGRC)

    def from_start(self):
        """The sum up to each token, its own included."""
        return inclusive_sums(self.g_NBGRC)


class FixedDecays(NamedTuple):
    """The same of decays that do not change: one matrix for all chunks, and no sums.

    age_N111C counts the tokens of a chunk up to each one, without those added in front.
    """

    g_11GR1: jax.Array
    age_N111C: jax.Array

    @classmethod
    def of(cls, g_GR, there_NBC):
        g_GR = _no_lower_than_underflow(g_GR)
        age_NBC = inclusive_sums(there_NBC[:, :1])
        return cls(g_GR[None, None, :, :, None], age_NBC[:, :, None, None])

    def between(self):
        age_C = jnp.arange(self.age_N111C.shape[-1], dtype=self.g_11GR1.dtype)
        age_CC = age_C[:, None] - age_C[None, :]
        return self.g_11GR1[..., None] * age_CC[None, None, None, None]

    def to_end(self):
        return self.g_11GR1 * (self.age_N111C[..., -1:] - self.age_N111C)

    def from_start(self):
        return self.g_11GR1 * self.age_N111C


def _sums_after(g):
    """Along the last axis, over the entries after each one."""
    return jnp.matmul(g, _triangle(g, below=1), precision="highest")


def _sums_between(g, own: bool):
    """[..., i, j]: the sum over the entries after j and up to i, with i's `own` or without."""
    after = jnp.einsum("...s,sj->...sj", g, _triangle(g, below=1))
    return jnp.matmul(_triangle(g, below=0 if own else 1), after, precision="highest")


def _triangle(g, below: int):
    """(C, C) of ones where row - column >= `below`, zeros elsewhere, for C entries of `g`."""
    return jnp.tril(jnp.ones((g.shape[-1],) * 2, g.dtype), -below)


def _no_lower_than_underflow(g):
    """g where exp(g) > 0, and a number whose exp is 0 in place of all below."""
    return jnp.maximum(g, -104 if g.dtype == jnp.float32 else -746)


def attend(chunks: Chunks, decays: TokenDecays | FixedDecays, s_BGRKV, precision):
    """(o_NBGRCV, final s_BGRKV) from the state s_BGRKV."""
    q_NBGCK, k_NBGCK, v_NBGRCV, number_NBC = chunks
    length = number_NBC.shape[-1]

    # A token's weight on itself is 1, and no decay gets a gradient from it: left in the
    # difference it would be a large term that cancels in the sums of the backward pass.
    i, j = (jax.lax.broadcasted_iota(jnp.int32, (length, length), axis) for axis in (0, 1))
    earlier, itself = ((i > j)[None, None, None, None], (i == j)[None, None, None, None])
    decay = jnp.exp(jnp.where(earlier, decays.between(), MASKED))
    decay = jnp.where(itself, 1, decay)  # of shape NBGRCC, or 11GRCC where it is fixed
    same_NBCC = number_NBC[..., :, None] == number_NBC[..., None, :]
    decay_NBGRCC = jnp.where(same_NBCC[:, :, None, None], decay, 0)
    scores_NBGCC = jnp.einsum("nbgik,nbgjk->nbgij", q_NBGCK, k_NBGCK, precision=precision)
    weights_NBGRCC = scores_NBGCC[:, :, :, None] * decay_NBGRCC
    o_NBGRCV = jnp.matmul(weights_NBGRCC, v_NBGRCV, precision=precision)

    number_NB11C = number_NBC[:, :, None, None, :]
    last = (jnp.arange(length) == length - 1)[None, None, None, None]
    reaches_end = (number_NB11C == number_NB11C[..., -1:]) & ~last
    to_end_NBGRC = jnp.exp(jnp.where(reaches_end, decays.to_end(), MASKED))
    to_end_NBGRC = jnp.where(last, 1, to_end_NBGRC)
    from_start_NBGRC = jnp.exp(jnp.where(number_NB11C == 0, decays.from_start(), MASKED))
    added_NBGKRV = jnp.einsum(
        "nbgck,nbgrcv->nbgkrv", k_NBGCK, to_end_NBGRC[..., None] * v_NBGRCV, precision=precision
    )
    keep_NBG1R1 = from_start_NBGRC[..., -1][:, :, :, None, :, None]
    s_BGKRV, s_NBGKRV = enter(keep_NBG1R1, added_NBGKRV, jnp.swapaxes(s_BGRKV, 2, 3))
    read_NBGRCV = jnp.einsum("nbgck,nbgkrv->nbgrcv", q_NBGCK, s_NBGKRV, precision=precision)
    o_NBGRCV += from_start_NBGRC[..., None] * read_NBGRCV
    return o_NBGRCV, jnp.swapaxes(s_BGKRV, 2, 3)
