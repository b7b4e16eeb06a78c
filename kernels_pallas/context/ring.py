"""Full attention to the keys of earlier shards, which are passed around a ring (arXiv:2310.01889).

Documents are contiguous, so of an earlier shard a query sees either no keys or those of that shard's
last document, the same for all queries of that document. The mask is then a rectangle. On a TPU a kernel
computes it (`tpu_older`), without forget gates. Elsewhere the op does, as the attention of a single token
whose heads are the queries: the last key is that token's own, the keys before it are its state.

With forget gates the rectangle holds the gates of the remote keys, and those of the tokens between them
and a query are one number for all keys: it is added to the log-sum-exp.

One custom_vjp saves this shard's q, k, v, out and lse. Its backward pass sends the keys around the
ring again, with their gradients; memory does not grow with the number of shards.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from kernels_pallas import attention as op
from kernels_pallas import dispatch
from kernels_pallas.attention.intervals import NEGATIVE, NO_KEYS, merge
from kernels_pallas.attention.tpu_older import Rectangle

QUERIES = 128  # tokens whose logits are in memory at once


class Static(NamedTuple):
    """`rectangle` is the TPU's kernel where it is used; there are then no gates."""

    axis: str
    scale: float
    soft_cap: float | None
    impl: str
    precision: object
    rectangle: Rectangle | None = None


class RemoteKeys(NamedTuple):
    """The keys, values, log forget gates (or None) and document numbers that have arrived from another
    shard."""

    k_BTGK: jax.Array
    v_BTGV: jax.Array
    log_forget_BTH: jax.Array | None
    numbers_BT: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attention_to_the_left(
    q_BTHK, k_BTGK, v_BTGV, log_forget_BTH, numbers_BT, static: Static
) -> tuple:
    """(out, lse) of this shard's queries over the keys of all earlier shards.

    Arguments:
      q_BTHK, k_BTGK, v_BTGV, log_forget_BTH: this shard's tokens; finite gates, or None.
      numbers_BT: from `document_numbers`.
      static: scale is a number here.

    Both have the accumulators' dtype; 0 and -1e30 where a query sees no keys.
    """
    return _forward(q_BTHK, k_BTGK, v_BTGV, log_forget_BTH, numbers_BT, static)[0]


def _forward(q_BTHK, k_BTGK, v_BTGV, log_forget_BTH, numbers_BT, static):
    dtype = dispatch.accumulator_dtype(q_BTHK, k_BTGK, v_BTGV)
    queries = q_BTHK.shape[1] if static.rectangle else QUERIES
    q_NBCHK, numbers_NBC = _blocks(q_BTHK, queries), _blocks(numbers_BT, queries)
    passed = _Passed.of(log_forget_BTH, static.axis)

    def attend(hops, remote, out_NBCHV, lse_NBCH):
        if static.rectangle is not None:
            start_BT, merged = _first_seen(numbers_BT, remote), (out_NBCHV[0], lse_NBCH[0])
            part = static.rectangle.outputs(q_BTHK, *remote[:2], start_BT)
            return tuple(x_BT[None] for x_BT in merge(merged, part))

        def block(part):
            q_BCHK, numbers_BC, since_BCH, *merged = part
            sees_BC1 = _sees(numbers_BC, remote)[..., None]
            out_BCHV, lse_BCH = _rectangle(q_BCHK, remote, static)
            if passed is not None:
                lse_BCH += since_BCH + between_B1H
            out_BCHV = jnp.where(sees_BC1[..., None], out_BCHV.astype(dtype), 0)
            return merge(merged, (out_BCHV, jnp.where(sees_BC1, lse_BCH, NEGATIVE)))

        between_B1H = passed and passed.between(hops)
        since_NBCH = passed and _blocks(passed.since_BTH, queries)
        return jax.lax.map(block, (q_NBCHK, numbers_NBC, since_NBCH, out_NBCHV, lse_NBCH))

    def hop(hops, carry):
        remote, merged = carry
        remote = _pass_on(remote, static.axis)
        merged = jax.lax.cond(
            _is_visible(numbers_BT, remote, hops, static.axis),
            lambda merged: attend(hops, remote, *merged),
            lambda merged: merged,
            merged,
        )
        return remote, merged

    shape = (*q_NBCHK.shape[:4], v_BTGV.shape[3])
    nothing = jnp.zeros(shape, dtype), jnp.full(shape[:4], NEGATIVE, dtype)
    start = RemoteKeys(k_BTGK, v_BTGV, log_forget_BTH, numbers_BT), nothing
    _, merged = jax.lax.fori_loop(1, jax.lax.axis_size(static.axis), hop, start)
    out_BTHV, lse_BTH = (_from_blocks(x, q_BTHK.shape[1]) for x in merged)
    out_BTHV = checkpoint_name(out_BTHV, "attention_out")
    lse_BTH = checkpoint_name(lse_BTH, "attention_lse")
    residuals = q_BTHK, k_BTGK, v_BTGV, log_forget_BTH, numbers_BT, out_BTHV, lse_BTH
    return (out_BTHV, lse_BTH), residuals


def _backward(static, residuals, cotangents):
    q_BTHK, k_BTGK, v_BTGV, log_forget_BTH, numbers_BT, out_BTHV, lse_BTH = residuals
    dout_BTHV, dlse_BTH = cotangents
    dtype = out_BTHV.dtype
    # delta is the row sum that softmax subtracts, minus dlse.
    delta_BTH = jnp.sum(dout_BTHV * out_BTHV, axis=-1) - dlse_BTH
    queries = q_BTHK.shape[1] if static.rectangle else QUERIES
    passed = _Passed.of(log_forget_BTH, static.axis)
    tokens = (q_BTHK, numbers_BT, lse_BTH, dout_BTHV, delta_BTH, passed and passed.since_BTH)
    parts = tuple(x if x is None else _blocks(x, queries) for x in tokens)

    def attend(hops, remote, dkeys, dqueries):
        if static.rectangle is not None:
            start_BT, rows = _first_seen(numbers_BT, remote), (dout_BTHV, lse_BTH, delta_BTH)
            dq, *dremote = static.rectangle.gradients(q_BTHK, *remote[:2], start_BT, rows)
            return (*map(jnp.add, dkeys[:2], dremote), None), (dqueries[0] + dq[None], None, None)

        between_B1H = passed and passed.between(hops)

        def block(dkeys, part):
            (q_BCHK, numbers_BC, lse_BCH, dout_BCHV, delta_BCH, since_BCH), dqueries = part
            sees_BC1 = _sees(numbers_BC, remote)[..., None]

            def rectangle(q_BCHK, *keys):
                out, lse = _rectangle(q_BCHK, RemoteKeys(*keys, remote.numbers_BT), static)
                return out, lse if passed is None else lse + since_BCH + between_B1H

            (remote_out, remote_lse), vjp = jax.vjp(rectangle, q_BCHK, *remote[:3])
            weight_BCH = jnp.exp(jnp.where(sees_BC1, remote_lse - lse_BCH, NEGATIVE))
            dlse_BCH = jnp.sum(dout_BCHV * remote_out.astype(dtype), axis=-1) - delta_BCH
            dremote_out = (weight_BCH[..., None] * dout_BCHV).astype(remote_out.dtype)
            dremote_lse = weight_BCH * dlse_BCH
            dq, *dremote = vjp((dremote_out, dremote_lse.astype(remote_lse.dtype)))
            if passed is None:
                dremote_lse = None
            new = dq, dremote_lse
            return jax.tree.map(jnp.add, dkeys, tuple(dremote)), (
                jax.tree.map(jnp.add, dqueries[:2], new),
                None if passed is None else jnp.sum(dremote_lse, axis=1),
            )

        dq_NBCHK, dsince_NBCH, dbetween_PBH = dqueries
        rows = dq_NBCHK, dsince_NBCH
        dkeys, (rows, dbetween_NBH) = jax.lax.scan(block, dkeys, (parts, rows))
        if passed is not None:
            dbetween_PBH = dbetween_PBH.at[hops].add(jnp.sum(dbetween_NBH, axis=0))
        return dkeys, (*rows, dbetween_PBH)

    def hop(hops, carry):
        remote, dkeys, dqueries = carry
        remote, dkeys = _pass_on((remote, dkeys), static.axis)
        gradients = jax.lax.cond(
            _is_visible(numbers_BT, remote, hops, static.axis),
            lambda gradients: attend(hops, remote, *gradients),
            lambda gradients: gradients,
            (dkeys, dqueries),
        )
        return remote, *gradients

    size = jax.lax.axis_size(static.axis)
    keys = k_BTGK, v_BTGV, log_forget_BTH
    dqueries = parts[0], parts[5], passed and jnp.zeros((size, *passed.own_BH.shape))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, dtype), (keys, dqueries))
    start = RemoteKeys(*keys, numbers_BT), *zeros
    _, dkeys, dqueries = jax.lax.fori_loop(1, size, hop, start)
    dkeys = _pass_on(dkeys, static.axis)  # back to their own shard
    dq_BTHK = _from_blocks(dqueries[0], q_BTHK.shape[1])
    if passed is not None:
        dsince_BTH = _from_blocks(dqueries[1], q_BTHK.shape[1])
        dkeys = *dkeys[:2], dkeys[2] + passed.gradient(dsince_BTH, dqueries[2])
    gradients = dq_BTHK, *dkeys
    primals = q_BTHK, *keys
    return *jax.tree.map(lambda dx, x: dx.astype(x.dtype), gradients, primals), None


attention_to_the_left.defvjp(_forward, _backward)


class _Passed(NamedTuple):
    """The sums of log forget gates between remote keys and queries.

    Sums are over a shard's tokens, of any documents: where a query sees remote keys, all between are of
    its own.

    Attributes:
      since_BTH: from this shard's first token to each of its tokens.
      own_BH: over all tokens of this shard.
      shards_PBH: the same of every shard.
    """

    since_BTH: jax.Array
    own_BH: jax.Array
    shards_PBH: jax.Array
    axis: str

    @classmethod
    def of(cls, log_forget_BTH, axis: str) -> "_Passed | None":
        if log_forget_BTH is None:
            return None
        wide = log_forget_BTH.astype(dispatch.accumulator_dtype(log_forget_BTH))
        since_BTH = jnp.cumsum(wide, axis=1)
        own_BH = since_BTH[:, -1]
        return cls(since_BTH, own_BH, jax.lax.all_gather(own_BH, axis), axis)

    def between(self, hops):
        """(B, 1, H): over the shards between this one and the one `hops` to the left."""
        this, shard_P = jax.lax.axis_index(self.axis), jnp.arange(len(self.shards_PBH))
        is_between_P11 = ((shard_P < this) & (shard_P > this - hops))[:, None, None]
        return jnp.sum(jnp.where(is_between_P11, self.shards_PBH, 0), axis=0)[:, None]

    def gradient(self, dsince_BTH, dbetween_PBH):
        """The gates' gradient, from the cotangents of `since_BTH` and, by hops, of `between`."""
        everyone_PPBH = jax.lax.all_gather(dbetween_PBH, self.axis)
        this, shards = jax.lax.axis_index(self.axis), jnp.arange(len(everyone_PPBH))
        reader_P1, hops_1P = shards[:, None], shards[None]
        is_between_PP = (this < reader_P1) & (this > reader_P1 - hops_1P)
        dwhole_BH = jnp.sum(
            jnp.where(is_between_PP[..., None, None], everyone_PPBH, 0), axis=(0, 1)
        )
        return jax.lax.cumsum(dsince_BTH, axis=1, reverse=True) + dwhole_BH[:, None]


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


def _first_seen(numbers_BT, remote: RemoteKeys):
    """The first key of the remote keys' last document, relative to their end, for queries that see it."""
    numbers_BS = remote.numbers_BT
    of_last_B = jnp.sum(numbers_BS == numbers_BS[:, -1:], axis=1)
    return jnp.where(_sees(numbers_BT, remote), -of_last_B[:, None], NO_KEYS)


def _rectangle(q_BCHK, remote: RemoteKeys, static: Static) -> tuple:
    """(out, lse) of all queries over the last document of the remote keys, as if all belonged to it."""
    batch, tokens, heads, key_size = q_BCHK.shape
    k_BTGK, v_BTGV, log_forget_BTH, numbers_BT = remote
    kv_heads = v_BTGV.shape[2]
    group = heads // kv_heads

    # From (B, C, G, R), to rows of which those that share a gate are neighbours.
    axes = (0, 2, 1, 3) if log_forget_BTH is None else (0, 2, 3, 1)

    def folded(x_BCGRK):
        return jnp.transpose(x_BCGRK, (*axes, 4)).reshape(batch, 1, -1, x_BCGRK.shape[-1])

    def unfolded(x_B1HK):
        sizes = batch, tokens, kv_heads, group
        x = x_B1HK.reshape(*(sizes[axis] for axis in axes), -1)
        return jnp.transpose(x, (*np.argsort(axes), 4)).reshape(batch, tokens, heads, -1)

    gates = last_gates = None
    if log_forget_BTH is not None:
        gates, last_gates = log_forget_BTH[:, :-1], log_forget_BTH[:, -1:]
    out, lse = op.attention(
        folded(q_BCHK.reshape(batch, tokens, kv_heads, group, key_size)),
        k_BTGK[:, -1:],
        v_BTGV[:, -1:],
        segment_ids=numbers_BT[:, -1:],
        log_forget_BTH=last_gates,
        heads_per_gate=1 if gates is None else tokens,
        initial_state=op.AttentionState(k_BTGK[:, :-1], v_BTGV[:, :-1], numbers_BT[:, :-1], gates),
        scale=static.scale,
        soft_cap=static.soft_cap,
        impl=static.impl,
        precision=static.precision,
    )
    return unfolded(out), unfolded(lse[..., None])[..., 0]


def _blocks(x_BT, queries: int):
    """(B, T, ...) -> (N, B, C, ...) with at most `queries` tokens a block; added tokens are padding."""
    batch, time = x_BT.shape[:2]
    length = min(time, queries)
    count = -(-time // length)
    x_BT = jnp.pad(x_BT, [(0, 0), (0, count * length - time)] + [(0, 0)] * (x_BT.ndim - 2))
    return jnp.moveaxis(x_BT.reshape(batch, count, length, *x_BT.shape[2:]), 1, 0)


def _from_blocks(x_NBC, time: int):
    """(N, B, C, ...) -> (B, T, ...)."""
    count, batch, length = x_NBC.shape[:3]
    return jnp.moveaxis(x_NBC, 0, 1).reshape(batch, count * length, *x_NBC.shape[3:])[:, :time]
