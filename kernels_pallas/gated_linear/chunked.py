"""Gated linear attention in chunks: products of matrices, and a short scan over the states."""

import jax
import jax.numpy as jnp

MASKED = -1e30  # exp of it is 0, and so is its gradient


def gated_linear(q_BTGK, k_BTGK, v_BTHV, log_decay, resets_BT, s_BHKV, precision):
    """(o_BTHV, final s_BHKV); the same arguments as the reference form."""
    batch, time, heads, value_size = v_BTHV.shape
    groups, key_size = k_BTGK.shape[2:]
    length = chunk_length(time)
    added = -time % length

    def cut(x_BT):
        """(B, T, ...) to (N, B, C, ...); the tokens added at the end change no state."""
        x_BT = jnp.pad(x_BT, ((0, 0), (0, added)) + ((0, 0),) * (x_BT.ndim - 2))
        x_BNC = x_BT.reshape(batch, -1, length, *x_BT.shape[2:])
        return jnp.moveaxis(x_BNC, 1, 0)

    if log_decay.ndim == 1:
        log_decay = jnp.broadcast_to(log_decay[None, None, :], (batch, time, heads))
    q_NBGCK = jnp.moveaxis(cut(q_BTGK), 3, 2)
    k_NBGKC = jnp.moveaxis(cut(k_BTGK), 2, 4)
    number_NBC = jnp.cumsum(cut(resets_BT).astype(jnp.int32), axis=2)
    ratio = heads // groups
    v_BTGRV = v_BTHV.reshape(batch, time, groups, ratio, value_size)
    v_NBGRCV = jnp.moveaxis(cut(v_BTGRV), 2, 4)
    s_BGRKV = s_BHKV.reshape(batch, groups, ratio, key_size, value_size)
    g = cut(log_decay.reshape(batch, time, groups, ratio, *log_decay.shape[3:]))
    g_NBGRCK = jnp.moveaxis(g if g.ndim == 6 else g[..., None], 2, 4)
    prefix, suffix = g_NBGRCK, jnp.zeros_like(g_NBGRCK)
    fresh = number_NBC[:, :, None, None, :, None] == 0
    last = number_NBC[:, :, None, None, :, None] == number_NBC[:, :, None, None, -1:, None]
    a = jnp.einsum("nbgck,nbgkc->nbgc", q_NBGCK, k_NBGKC, precision=precision)
    o = a[:, :, :, None, :, None] * v_NBGRCV
    size = 1

    def halves(x, axis):
        x = x.reshape(*x.shape[:axis], length // size // 2, 2, size, *x.shape[axis + 1 :])
        return (jax.lax.index_in_dim(x, i, axis + 1, keepdims=False) for i in range(2))

    kt_NBGCK = jnp.swapaxes(k_NBGKC, 3, 4)
    while size < length:
        (p1, p2), (s1, s2) = halves(prefix, 4), halves(suffix, 4)
        _, q2 = halves(q_NBGCK[:, :, :, None], 4)
        k1, _ = halves(kt_NBGCK[:, :, :, None], 4)
        n1, n2 = halves(number_NBC, 2)
        v1, _ = halves(v_NBGRCV, 4)
        a = jnp.einsum(
            "...ik,...jk->...ij", q2 * jnp.exp(p2), k1 * jnp.exp(s1), precision=precision
        )
        same = n2[..., :, None] == n1[..., None, :]
        a = jnp.where(same[:, :, None, None], a, 0)
        o2 = jnp.matmul(a, v1, precision=precision)
        o2 = jnp.stack([jnp.zeros_like(o2), o2], axis=5)
        o = o + o2.reshape(o.shape)
        total1, total2 = p1[..., -1:, :], p2[..., -1:, :]
        prefix = jnp.stack([p1, p2 + total1], axis=5).reshape(prefix.shape)
        suffix = jnp.stack([s1 + total2, s2], axis=5).reshape(suffix.shape)
        size *= 2

    read = jnp.where(fresh, q_NBGCK[:, :, :, None] * jnp.exp(prefix), 0)
    write = jnp.where(last, kt_NBGCK[:, :, :, None] * jnp.exp(suffix), 0)
    u = jnp.einsum("...ck,...cv->...kv", write, v_NBGRCV, precision=precision)
    keep = jnp.where(fresh[..., -1, :], jnp.exp(prefix[..., -1, :]), 0)[..., None]

    def enter(s, chunk):
        keep, u = chunk
        return keep * s + u, s

    s_BGRKV, s_NBGRKV = jax.lax.scan(enter, s_BGRKV, (keep, u))
    o = o + jnp.matmul(read, s_NBGRKV, precision=precision)
    o_BTHV = jnp.moveaxis(jnp.moveaxis(o, 4, 2), 0, 1).reshape(batch, -1, heads, value_size)
    return o_BTHV[:, :time], s_BGRKV.reshape(s_BHKV.shape)


def chunk_length(time: int) -> int:
    """Tokens per chunk: a power of two, 64 where there are as many."""
    return min(64, 1 << max(0, time - 1).bit_length())
