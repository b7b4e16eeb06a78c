"""One decay per head: (Q K^T) times a matrix of decays, as in Mamba-2's SSD."""

import jax
import jax.numpy as jnp

from kernels_pallas.gated_linear.chunks import MASKED, Chunks, enter, inclusive_sums


def attend(cut: Chunks, s_BGRKV, precision):
    """(o_NBGRCV, final s_BGRKV) from the state s_BGRKV."""
    q_NBGCK, k_NBGCK, v_NBGRCV, g_NBGRC, number_NBC = cut
    sums = _sums(g_NBGRC)
    length = g_NBGRC.shape[-1]

    # A token's weight on itself is 1, and no decay gets a gradient from it: left in the
    # difference it would be a large term that cancels in the sums of the backward pass.
    i, j = (jax.lax.broadcasted_iota(jnp.int32, (length, length), axis) for axis in (0, 1))
    seen_NBCC = (number_NBC[..., :, None] == number_NBC[..., None, :]) & (i > j)[None, None]
    between = [x[..., :, None] - x[..., None, :] for x in sums]
    decay_NBGRCC = _decay(seen_NBCC[:, :, None, None], between)
    decay_NBGRCC = jnp.where((i == j)[None, None, None, None], 1, decay_NBGRCC)
    scores_NBGCC = jnp.einsum("nbgik,nbgjk->nbgij", q_NBGCK, k_NBGCK, precision=precision)
    weights_NBGRCC = scores_NBGCC[:, :, :, None] * decay_NBGRCC
    o_NBGRCV = jnp.matmul(weights_NBGRCC, v_NBGRCV, precision=precision)

    number_NB11C = number_NBC[:, :, None, None, :]
    before_last = (jnp.arange(length) < length - 1)[None, None, None, None]
    reaches_end = (number_NB11C == number_NB11C[..., -1:]) & before_last
    to_end_NBGRC = _decay(reaches_end, [x[..., -1:] - x for x in sums])
    to_end_NBGRC = jnp.where(before_last, to_end_NBGRC, 1)
    from_start_NBGRC = _decay(number_NB11C == 0, sums)
    added_NBGKRV = jnp.einsum(
        "nbgck,nbgrcv->nbgkrv", k_NBGCK, to_end_NBGRC[..., None] * v_NBGRCV, precision=precision
    )
    keep_NBG1R1 = from_start_NBGRC[..., -1][:, :, :, None, :, None]
    s_BGKRV, s_NBGKRV = enter(keep_NBG1R1, added_NBGKRV, jnp.swapaxes(s_BGRKV, 2, 3))
    read_NBGRCV = jnp.einsum("nbgck,nbgkrv->nbgrcv", q_NBGCK, s_NBGKRV, precision=precision)
    o_NBGRCV += from_start_NBGRC[..., None] * read_NBGRCV
    return o_NBGRCV, jnp.swapaxes(s_BGKRV, 2, 3)


def _decay(mask, parts):
    return jnp.exp(jnp.where(mask, parts[0] + parts[1], MASKED))


def _sums(g):
    """Inclusive sums of g over the last axis in two parts, [coarse, fine].

    The difference of two sums in one part would lose to rounding what a few weak gates add
    behind a strong one. Multiples of 1/256 sum exactly, and what is left of them is small.
    """
    underflow = -104 if g.dtype == jnp.float32 else -746  # where exp is 0
    g = jnp.maximum(g, underflow)
    coarse = jax.lax.stop_gradient(jnp.round(g * 256) / 256)
    return [inclusive_sums(x) for x in (coarse, g - coarse)]
