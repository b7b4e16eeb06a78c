"""The delta rule in chunks of 64 tokens (the WY or UT form of arXiv:2406.06484, section 3).

Within a chunk with the entering state S, the corrections d_i = beta_i (v_i - S_i^T e_i) solve

    d_i + beta_i sum_{j<i} (e_i . w_ij k_j) d_j = beta_i (v_i - (w_i0 e_i)^T S)

with w_ij the decay from after token j to token i and e the erase key: (I + A) D = U - W S, A strictly lower
triangular. A, its inverse and everything else that does not depend on S are computed for all chunks
at once (`scores.py`); a scan over chunks computes D = (I + A)^-1 (U - W S) and the next S.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kernels_pallas.delta_rule import inputs, scores

CHUNK = 64  # tokens
BLOCK = 8 * CHUNK  # tokens computed at once, or all if there are at most twice as many


def delta_rule(q_BTGK, k_BTGK, v_BTHV, beta_BTH, log_decay, erase_BTGK, call):
    """(o_BTHV, last S_BHKV); every form of the op has this signature (`kernels_pallas.forms`)."""
    batch, time, heads, value_size = v_BTHV.shape
    blocks = 1 if time <= 2 * BLOCK else -(-time // BLOCK)
    tokens = inputs.prepare(q_BTGK, k_BTGK, v_BTHV, beta_BTH, log_decay, erase_BTGK, call)
    tokens = *tokens, call.resets_BT
    if blocks == 1:
        return _block(*tokens, call.state_B, precision=call.precision)

    def cut(x_BT):
        """(blocks, B, T of a block, ...); added tokens are zeros: they change nothing."""
        added = ((0, 0), (0, blocks * BLOCK - time)) + ((0, 0),) * (x_BT.ndim - 2)
        return jnp.moveaxis(
            jnp.pad(x_BT, added).reshape(batch, blocks, BLOCK, *x_BT.shape[2:]), 1, 0
        )

    def step(s_BHKV, tokens):
        o_BTHV, s_BHKV = _block(*tokens, s_BHKV, precision=call.precision)
        return s_BHKV, o_BTHV

    s_BHKV, o = jax.lax.scan(step, call.state_B, jax.tree.map(cut, tokens))
    o_BTHV = jnp.moveaxis(o, 0, 1).reshape(batch, blocks * BLOCK, heads, value_size)
    return o_BTHV[:, :time], s_BHKV


def _block(
    q_BTGK, k_BTGK, v_BTHV, beta_BTH, log_decay_BTHK, erase_BTGK, resets_BT, s_BHKV, *, precision
):
    batch, time, heads, value_size = v_BTHV.shape
    inputs = q_BTGK, k_BTGK, v_BTHV, beta_BTH, log_decay_BTHK, erase_BTGK
    documents = _documents(resets_BT, chunk_length(time))
    o_NBHCV, s_BHKV = _solve_and_read(precision, inputs, documents, s_BHKV)
    o_BTHV = jnp.transpose(o_NBHCV, (1, 0, 3, 2, 4)).reshape(batch, -1, heads, value_size)
    return o_BTHV[:, :time], s_BHKV


def prepare(
    q_BTGK,
    k_BTGK,
    v_BTHV,
    beta_BTH,
    log_decay_BTHK,
    erase_BTGK,
    resets_BT,
    *,
    precision,
    chunks_first=True,
):
    """(`System`, (read_s (C, K), read_d (C, C))) of all chunks: all that does not depend on the state.

    o = read_s S + read_d D. Arrays have the leading axes (N, B, H), or (B, H, N) if not
    `chunks_first`.
    """
    inputs = q_BTGK, k_BTGK, v_BTHV, beta_BTH, log_decay_BTHK, erase_BTGK
    tokens = Tokens.of(*inputs, chunks_first=chunks_first)
    documents = _documents(resets_BT, chunk_length(v_BTHV.shape[1]))
    if not chunks_first:
        documents = jax.tree.map(lambda mask: jnp.moveaxis(mask, 0, 3), documents)
    grams = scores.grams_of(tokens.q, tokens.k, tokens.log_decay, precision, tokens.erase)
    return _system(precision, documents, chunks_first, tokens, grams)


class Tokens(NamedTuple):
    """The inputs in chunks, (N, B, G, 1 or R, C, ...), or (B, G, R, N, C, ...) if not chunks first."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    beta: jax.Array
    log_decay: jax.Array | None
    erase: jax.Array | None  # None: it is k

    @classmethod
    def of(cls, q_BTGK, k_BTGK, v_BTHV, beta_BTH, log_decay_BTHK, erase_BTGK, *, chunks_first):
        time, heads = v_BTHV.shape[1:3]
        length, kv_heads = chunk_length(time), k_BTGK.shape[2]

        def chunks(x_BTHK, heads_per_group):
            """Added tokens are zeros: they change nothing."""
            x_BTHK = jnp.pad(x_BTHK, ((0, 0), (0, -time % length), (0, 0), (0, 0)))
            groups = x_BTHK.shape[2] // heads_per_group
            shape = (x_BTHK.shape[0], -1, length, groups, heads_per_group, x_BTHK.shape[3])
            order = (1, 0, 3, 4, 2, 5) if chunks_first else (0, 3, 4, 1, 2, 5)
            return jnp.transpose(x_BTHK.reshape(shape), order)

        repeats = heads // kv_heads
        q, k = (chunks(x, 1) for x in (q_BTGK, k_BTGK))
        v, beta = (chunks(x, repeats) for x in (v_BTHV, beta_BTH[..., None]))
        g = None if log_decay_BTHK is None else chunks(log_decay_BTHK, repeats)
        e = None if erase_BTGK is None else chunks(erase_BTGK, 1)
        # The barrier keeps XLA's CPU backend from repeating the transposes for every product.
        return jax.lax.optimization_barrier(cls(q, k, v, beta, g, e))


def _system(precision, documents, chunks_first, tokens, grams):
    """As `prepare`, from `Tokens` and their `scores.grams_of`."""
    q, k, v, beta, log_decay, erase = tokens
    part = scores.of(q, k, log_decay, grams, documents, precision, erase)
    at = 2 if chunks_first else 1  # the axis of G
    kv_heads, repeats = v.shape[at : at + 2]

    def per_head(x):
        """(N, B, G, R or 1, C, K) -> (N, B, H, C, K)"""
        shape = x.shape[:at] + (kv_heads, repeats) + x.shape[at + 2 :]
        heads_joined = shape[:at] + (kv_heads * repeats,) + shape[at + 2 :]
        return jnp.broadcast_to(x, shape).reshape(heads_joined)

    system = System(
        a=per_head(beta * part.keys),
        u=per_head(beta * v),
        w=per_head(beta * part.decay_in * (k if erase is None else erase)),
        write=per_head(part.decay_out * k),
        decay=per_head(jnp.swapaxes(part.decay_in[..., -1:, :], -1, -2)),
    )
    return system, (per_head(part.decay_in * q), per_head(part.queries))


def chunk_length(time: int) -> int:
    """Tokens per chunk: 64, or the power of two that holds a shorter sequence."""
    return min(CHUNK, 2 ** math.ceil(math.log2(time)))


def _documents(resets_BT, length):
    """Masks of documents within the chunks, (N, B, 1, 1, C, C or 1)."""
    # The barrier keeps XLA from folding the masks of a call without segment ids into constants.
    resets_BT = jax.lax.optimization_barrier(resets_BT)
    resets_BT = jnp.pad(resets_BT, ((0, 0), (0, -resets_BT.shape[1] % length)))
    resets_BNC = resets_BT.reshape(resets_BT.shape[0], -1, length).astype(jnp.float32)
    # The number of resets so far in the chunk: 0 is the document of the entering state. A product
    # with ones is one kernel, a cumulative sum six.
    number_BNC = resets_BNC @ jnp.triu(jnp.ones((length, length), jnp.float32))
    number = jnp.moveaxis(number_BNC, 1, 0)[:, :, None, None, :, None]
    return scores.Documents(
        same=number == jnp.swapaxes(number, -1, -2),
        entered=number == 0,
        left=number == number[..., -1:, :],
    )


class System(NamedTuple):
    """D = (I + a)^-1 (u - w S), then S <- decay * S + write^T D; each (N, B, H, ...)."""

    a: jax.Array  # (C, C), strictly lower triangular
    u: jax.Array  # (C, V)
    w: jax.Array  # (C, K)
    write: jax.Array  # (C, K)
    decay: jax.Array  # (K or 1, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _solve_and_read(precision, inputs, documents, s_BHKV):
    """(o, last state); o = read[0] S + read[1] D with the S that enters each chunk.

    Its gradient saves the inputs, their products, the inverse, the entering states and D. The system
    is recomputed: it is made of these by elementwise products, and is larger than they are. So are the
    `Tokens`: the scan over blocks keeps its inputs anyway, and would keep the tokens beside them.
    """
    return _forward(precision, inputs, documents, s_BHKV)[0]


def _in_chunks(inputs):
    return Tokens.of(*inputs, chunks_first=True)


def _forward(precision, inputs, documents, s_BHKV):
    tokens = _in_chunks(inputs)
    grams = scores.grams_of(tokens.q, tokens.k, tokens.log_decay, precision, tokens.erase)
    system, read = _system(precision, documents, True, tokens, grams)
    inverse = unit_lower_inverse(system.a)
    dot = functools.partial(jnp.matmul, precision=precision)

    def step(s_BHKV, chunk):
        inverse, u, w, write, decay = chunk
        d_BHCV = dot(inverse, u - dot(w, s_BHKV))
        return decay * s_BHKV + dot(_transposed(write), d_BHCV), (s_BHKV, d_BHCV)

    chunks = inverse, system.u, system.w, system.write, system.decay
    last_BHKV, (s_NBHKV, d_NBHCV) = jax.lax.scan(step, s_BHKV, chunks)
    o_NBHCV = dot(read[0], s_NBHKV) + dot(read[1], d_NBHCV)
    return (o_NBHCV, last_BHKV), (inputs, grams, documents, inverse, s_NBHKV, d_NBHCV)


def _backward(precision, kept, cotangents):
    inputs, grams, documents, *solved = kept
    tokens, pull_inputs = jax.vjp(_in_chunks, inputs)
    (system, read), pull = jax.vjp(
        functools.partial(_system, precision, documents, True), tokens, grams
    )
    dsystem, dread, ds_BHKV = _of_system(precision, system, read, *solved, cotangents)
    dtokens, dgrams = pull((dsystem, dread))
    if grams is not None:
        # The compiler leaves out the products themselves, which were saved.
        def of_keys(q, k, erase):
            return scores.grams_of(q, k, None, precision, erase)

        dq, dk, de = jax.vjp(of_keys, tokens.q, tokens.k, tokens.erase)[1](dgrams)
        dtokens = dtokens._replace(
            q=dtokens.q + dq,
            k=dtokens.k + dk,
            erase=None if de is None else dtokens.erase + de,
        )
    return *pull_inputs(dtokens), None, ds_BHKV


def _of_system(precision, system, read, inverse, s_NBHKV, d_NBHCV, cotangents):
    """Cotangents of the `System`, of both reads and of the first state."""
    w, write, decay, (read_s, read_d) = system.w, system.write, system.decay, read
    do_NBHCV, ds_BHKV = cotangents
    dot = functools.partial(jnp.matmul, precision=precision)

    def step(ds_BHKV, chunk):
        dd, ds_read, inverse, w, write, decay = chunk
        drhs_BHCV = dot(_transposed(inverse), dd + dot(write, ds_BHKV))
        before_BHKV = decay * ds_BHKV + ds_read - dot(_transposed(w), drhs_BHCV)
        return before_BHKV, (ds_BHKV, drhs_BHCV)

    dd_NBHCV = dot(_transposed(read_d), do_NBHCV)
    ds_read_NBHKV = dot(_transposed(read_s), do_NBHCV)
    chunks = dd_NBHCV, ds_read_NBHKV, inverse, w, write, decay
    ds_first_BHKV, (ds_NBHKV, drhs_NBHCV) = jax.lax.scan(step, ds_BHKV, chunks, reverse=True)

    # D = T (u - w S) with T = (I + a)^-1: dT = dD (u - w S)^T and da = -T^T dT T^T, which is
    # -(T^T dD) D^T: the inverse's own cotangent is never needed.
    d_t, s_t = _transposed(d_NBHCV), _transposed(s_NBHKV)
    ddecay = jnp.sum(ds_NBHKV * s_NBHKV, axis=-1, keepdims=True)
    if decay.shape[-2] == 1:
        ddecay = jnp.sum(ddecay, axis=-2, keepdims=True)
    dsystem = System(
        a=-jnp.tril(dot(drhs_NBHCV, d_t), -1),
        u=drhs_NBHCV,
        w=-dot(drhs_NBHCV, s_t),
        write=dot(d_NBHCV, _transposed(ds_NBHKV)),
        decay=ddecay,
    )
    dread = dot(do_NBHCV, s_t), dot(do_NBHCV, d_t)
    return dsystem, dread, ds_first_BHKV


_solve_and_read.defvjp(_forward, _backward)


def unit_lower_inverse(a):
    """(I + a)^-1 of strictly lower triangular a (..., C, C), C a power of two."""
    # On a CPU each level of blocks is eight kernels to compile; elsewhere the loop over rows is slow.
    by_blocks_of_32, by_blocks_of_8 = (
        functools.partial(inverse_from_blocks, block=min(block, a.shape[-1])) for block in (32, 8)
    )
    return jax.lax.platform_dependent(a, cpu=by_blocks_of_32, default=by_blocks_of_8)


def inverse_from_blocks(a, block: int):
    """`unit_lower_inverse`, with blocks of `block` rows by forward substitution.

    Then each pair of blocks X, Y with a_21 between them becomes [[X, 0], [-Y a_21 X, Y]]. No powers of
    a are formed: their entries could be large.
    """
    diagonal = _diagonal_blocks(a, block, 0)

    def substitute(i, inverse):
        """Adds -(row i of a) inverse to row i, in which only the diagonal is set."""
        row = jax.lax.dynamic_index_in_dim(diagonal, i, axis=-2, keepdims=False)
        row = -jnp.sum(row[..., None] * inverse, axis=-2, keepdims=True)
        own = jax.lax.dynamic_slice_in_dim(inverse, i, 1, axis=-2)
        return jax.lax.dynamic_update_slice_in_dim(inverse, own + row, i, axis=-2)

    # A loop: unrolled, these rows took a tenth of the time to compile a layer.
    identity = jnp.broadcast_to(jnp.eye(block, dtype=a.dtype), diagonal.shape)
    inverse = jax.lax.fori_loop(1, block, substitute, identity)
    dot = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    while block < a.shape[-1]:
        first, second = scores.pairs(inverse)
        below = -dot(second, dot(_diagonal_blocks(a, block, 1), first))
        inverse = scores.merge(inverse, below)
        block *= 2
    return inverse[..., 0, :, :]


def _diagonal_blocks(a, block: int, below: int):
    """The diagonal blocks (..., n, b, b), or with below=1 the blocks below the diagonal between pairs of
    them (..., n / 2, b, b)."""
    step = block * (1 + below)
    starts = range(0, a.shape[-1], step)
    shift = below * block
    return jnp.stack(
        [a[..., i + shift : i + shift + block, i : i + block] for i in starts], axis=-3
    )


def _transposed(x):
    return jnp.swapaxes(x, -1, -2)
