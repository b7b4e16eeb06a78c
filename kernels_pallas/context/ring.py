"""Full attention to the keys of earlier shards, which are passed around a ring (arXiv:2310.01889).

Documents are contiguous, so of an earlier shard a query sees either no keys or those of that shard's
last document, the same for all queries of that document. The mask is then a rectangle. The op
computes it as the attention of a single token whose heads are the queries: the last key is that token's
own, the keys before it are its state.

One custom_vjp saves this shard's q, k, v, out and lse. Its backward pass sends the keys around the
ring again, with their gradients; memory does not grow with the number of shards.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from kernels_pallas import attention as op
from kernels_pallas import dispatch

NEGATIVE = -1e30  # the log-sum-exp of no keys
QUERIES = 128  # tokens whose logits are in memory at once


class Static(NamedTuple):
    axis: str
    scale: float
    soft_cap: float | None
    impl: str
    precision: object


class RemoteKeys(NamedTuple):
    """The keys, values and document numbers that have arrived from another shard."""

    k_BTGK: jax.Array
    v_BTGV: jax.Array
    numbers_BT: jax.Array


def merge(ours: tuple, theirs: tuple) -> tuple:
    """(out, lse) over the union of two disjoint sets of keys, from (out, lse) over each."""
    (out_a, lse_a), (out_b, lse_b) = ours, theirs
    m = jax.lax.stop_gradient(jnp.maximum(lse_a, lse_b))
    a, b = jnp.exp(lse_a - m), jnp.exp(lse_b - m)
    out = out_a * (a / (a + b))[..., None] + out_b * (b / (a + b))[..., None]
    return out, m + jnp.log(a + b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attention_to_the_left(q_BTHK, k_BTGK, v_BTGV, numbers_BT, static: Static) -> tuple:
    """(out, lse) of this shard's queries over the keys of all earlier shards.

    Arguments:
      q_BTHK, k_BTGK, v_BTGV: this shard's tokens.
      numbers_BT: from `document_numbers`.
      static: scale is a number here.

    Both have the accumulators' dtype; 0 and -1e30 where a query sees no keys.
    """
    return _forward(q_BTHK, k_BTGK, v_BTGV, numbers_BT, static)[0]


def _forward(q_BTHK, k_BTGK, v_BTGV, numbers_BT, static):
    dtype = dispatch.accumulator_dtype(q_BTHK, k_BTGK, v_BTGV)
    q_NBCHK, numbers_NBC = _blocks(q_BTHK), _blocks(numbers_BT)

    def attend(remote, out_NBCHV, lse_NBCH):
        def block(part):
            q_BCHK, numbers_BC, *merged = part
            sees_BC1 = _sees(numbers_BC, remote)[..., None]
            out_BCHV, lse_BCH = _rectangle(q_BCHK, remote, static)
            out_BCHV = jnp.where(sees_BC1[..., None], out_BCHV.astype(dtype), 0)
            return merge(merged, (out_BCHV, jnp.where(sees_BC1, lse_BCH, NEGATIVE)))

        return jax.lax.map(block, (q_NBCHK, numbers_NBC, out_NBCHV, lse_NBCH))

    def hop(hops, carry):
        remote, merged = carry
        remote = _pass_on(remote, static.axis)
        merged = jax.lax.cond(
            _is_visible(numbers_BT, remote, hops, static.axis),
            lambda merged: attend(remote, *merged),
            lambda merged: merged,
            merged,
        )
        return remote, merged

    shape = (*q_NBCHK.shape[:4], v_BTGV.shape[3])
    nothing = jnp.zeros(shape, dtype), jnp.full(shape[:4], NEGATIVE, dtype)
    start = RemoteKeys(k_BTGK, v_BTGV, numbers_BT), nothing
    _, merged = jax.lax.fori_loop(1, jax.lax.axis_size(static.axis), hop, start)
    out_BTHV, lse_BTH = (_from_blocks(x, q_BTHK.shape[1]) for x in merged)
    out_BTHV = checkpoint_name(out_BTHV, "attention_out")
    lse_BTH = checkpoint_name(lse_BTH, "attention_lse")
    return (out_BTHV, lse_BTH), (q_BTHK, k_BTGK, v_BTGV, numbers_BT, out_BTHV, lse_BTH)


def _backward(static, residuals, cotangents):
    q_BTHK, k_BTGK, v_BTGV, numbers_BT, out_BTHV, lse_BTH = residuals
    dout_BTHV, dlse_BTH = cotangents
    dtype = out_BTHV.dtype
    # delta is the row sum that softmax subtracts, minus dlse.
    delta_BTH = jnp.sum(dout_BTHV * out_BTHV, axis=-1) - dlse_BTH
    tokens = (q_BTHK, numbers_BT, lse_BTH, dout_BTHV, delta_BTH)
    parts = tuple(_blocks(x) for x in tokens)

    def attend(remote, dk_BTGK, dv_BTGV, dq_NBCHK):
        def block(carry, part):
            q_BCHK, numbers_BC, lse_BCH, dout_BCHV, delta_BCH, dq_BCHK = part
            sees_BC1 = _sees(numbers_BC, remote)[..., None]

            def rectangle(q_BCHK, k_BTGK, v_BTGV):
                return _rectangle(q_BCHK, RemoteKeys(k_BTGK, v_BTGV, remote.numbers_BT), static)

            (remote_out, remote_lse), vjp = jax.vjp(rectangle, q_BCHK, remote.k_BTGK, remote.v_BTGV)
            weight_BCH = jnp.exp(jnp.where(sees_BC1, remote_lse - lse_BCH, NEGATIVE))
            dlse_BCH = jnp.sum(dout_BCHV * remote_out.astype(dtype), axis=-1) - delta_BCH
            dremote_out = (weight_BCH[..., None] * dout_BCHV).astype(remote_out.dtype)
            dq, dk, dv = vjp((dremote_out, (weight_BCH * dlse_BCH).astype(remote_lse.dtype)))
            return (carry[0] + dk, carry[1] + dv), dq_BCHK + dq

        carry, dq_NBCHK = jax.lax.scan(block, (dk_BTGK, dv_BTGV), (*parts, dq_NBCHK))
        return *carry, dq_NBCHK

    def hop(hops, carry):
        remote, dk_BTGK, dv_BTGV, dq_NBCHK = carry
        remote, dk_BTGK, dv_BTGV = _pass_on((remote, dk_BTGK, dv_BTGV), static.axis)
        gradients = jax.lax.cond(
            _is_visible(numbers_BT, remote, hops, static.axis),
            lambda gradients: attend(remote, *gradients),
            lambda gradients: gradients,
            (dk_BTGK, dv_BTGV, dq_NBCHK),
        )
        return remote, *gradients

    start = (
        RemoteKeys(k_BTGK, v_BTGV, numbers_BT),
        *(jnp.zeros(x.shape, dtype) for x in (k_BTGK, v_BTGV, parts[0])),
    )
    size = jax.lax.axis_size(static.axis)
    _, dk_BTGK, dv_BTGV, dq_NBCHK = jax.lax.fori_loop(1, size, hop, start)
    dk_BTGK, dv_BTGV = _pass_on((dk_BTGK, dv_BTGV), static.axis)  # back to their own shard
    dq_BTHK = _from_blocks(dq_NBCHK, q_BTHK.shape[1])
    return (
        dq_BTHK.astype(q_BTHK.dtype),
        dk_BTGK.astype(k_BTGK.dtype),
        dv_BTGV.astype(v_BTGV.dtype),
        None,
    )


attention_to_the_left.defvjp(_forward, _backward)


def _pass_on(tree, axis: str):
    """Sends each shard's tree to the right neighbour, the last shard's to the first."""
    size = jax.lax.axis_size(axis)
    return jax.lax.ppermute(tree, axis, [(i, (i + 1) % size) for i in range(size)])


def _is_visible(numbers_BT, remote: RemoteKeys, hops, axis: str):
    """Whether this shard sees remote keys, which have made `hops` hops: they must come from
    the left and end with a document that continues here."""
    return (hops <= jax.lax.axis_index(axis)) & jnp.any(_sees(numbers_BT, remote))


def _sees(numbers_BT, remote: RemoteKeys):
    """Whether each query sees the last document of the remote keys, which come from the left."""
    return (numbers_BT == remote.numbers_BT[:, -1:]) & (numbers_BT != 0)


def _rectangle(q_BCHK, remote: RemoteKeys, static: Static) -> tuple:
    """(out, lse) of all queries over the last document of the remote keys, as if all belonged to it."""
    batch, tokens, heads, key_size = q_BCHK.shape
    k_BTGK, v_BTGV, numbers_BT = remote
    kv_heads, value_size = v_BTGV.shape[2:]
    group = heads // kv_heads

    def fold(x):  # (B, C, G, R, ...) and (B, G, C, R, ...) are each other's transpose
        return jnp.swapaxes(x, 1, 2)

    q_BGCRK = fold(q_BCHK.reshape(batch, tokens, kv_heads, group, key_size))
    out, lse = op.attention(
        q_BGCRK.reshape(batch, 1, -1, key_size),
        k_BTGK[:, -1:],
        v_BTGV[:, -1:],
        segment_ids=numbers_BT[:, -1:],
        initial_state=op.AttentionState(k_BTGK[:, :-1], v_BTGV[:, :-1], numbers_BT[:, :-1]),
        scale=static.scale,
        soft_cap=static.soft_cap,
        impl=static.impl,
        precision=static.precision,
    )
    out_BCGRV = fold(out.reshape(batch, kv_heads, tokens, group, value_size))
    lse_BCGR = fold(lse.reshape(batch, kv_heads, tokens, group))
    return out_BCGRV.reshape(batch, tokens, heads, -1), lse_BCGR.reshape(batch, tokens, heads)


def _blocks(x_BT):
    """(B, T, ...) -> (N, B, C, ...); added tokens are padding."""
    batch, time = x_BT.shape[:2]
    length = min(time, QUERIES)
    count = -(-time // length)
    x_BT = jnp.pad(x_BT, [(0, 0), (0, count * length - time)] + [(0, 0)] * (x_BT.ndim - 2))
    return jnp.moveaxis(x_BT.reshape(batch, count, length, *x_BT.shape[2:]), 1, 0)


def _from_blocks(x_NBC, time: int):
    """(N, B, C, ...) -> (B, T, ...)."""
    count, batch, length = x_NBC.shape[:3]
    return jnp.moveaxis(x_NBC, 0, 1).reshape(batch, count * length, *x_NBC.shape[3:])[:, :time]
