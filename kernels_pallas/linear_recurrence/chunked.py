"""The linear recurrence in chunks: 2 sqrt(L) sequential steps for L tokens instead of L.

A loop runs over blocks of at most 1,024 tokens, whose arrays fit the cache. A block of L tokens is cut
into N chunks of C = sqrt(L), which are computed at once: a first sweep over the C positions gives each
chunk's end state (from zero) and its product of decays, a scan over the N chunks gives the state
before each chunk, and a second sweep runs the recurrence from there. Running it twice is faster than
storing cumulative products, and every h is computed by the plain recurrence: products of decays are
only multiplied, never divided by or exponentiated, so a = 0 and a = 1 are exact.
"""

import math

import jax
import jax.numpy as jnp

from kernels_pallas.linear_recurrence import gates

BLOCK = 1024  # tokens


def recurrence(gated, a_BTD, b_BTD, call):
    """h_BTD; every form of the op has this signature (`kernels_pallas.forms`)."""
    return _recurrence(*gates.prepare(gated, a_BTD, b_BTD, call), call.state_B)


@jax.custom_vjp
def _recurrence(a_BTD, b_BTD, h_BD):
    """h_t = a_t h_{t-1} + b_t from h_BD; a is 0 at boundaries."""
    time, size, blocks, (a_BTD, b_BTD) = _whole_blocks(a_BTD, b_BTD)

    def step(i, carry):
        h_BD, h_BTD = carry
        a_BLD, b_BLD = (_slice(x_BTD, size * i, size) for x_BTD in (a_BTD, b_BTD))
        h_BLD = _block(a_BLD, b_BLD, h_BD, reverse=False)
        return h_BLD[:, -1], _put(h_BTD, h_BLD, size * i)

    _, h_BTD = jax.lax.fori_loop(0, blocks, step, (h_BD, jnp.zeros_like(b_BTD)))
    return h_BTD[:, :time]


def _forward(a_BTD, b_BTD, h_BD):
    h_BTD = _recurrence(a_BTD, b_BTD, h_BD)
    return h_BTD, (a_BTD, h_BTD, h_BD)


def _backward(residuals, dh_BTD):
    # The adjoint g_t = dh_t + a_{t+1} g_{t+1} is the same recurrence in reverse.
    a_BTD, h_BTD, h_BD = residuals
    time, size, blocks, (a_BTD, h_BTD, dh_BTD) = _whole_blocks(a_BTD, h_BTD, dh_BTD)

    def step(i, carry):
        a_later_BD, g_later_BD, da_BTD, g_BTD = carry
        start = size * (blocks - 1 - i)
        a_BLD, h_BLD, dh_BLD = (_slice(x_BTD, start, size) for x_BTD in (a_BTD, h_BTD, dh_BTD))
        a_next_BLD = jnp.concatenate([a_BLD[:, 1:], a_later_BD[:, None]], axis=1)
        g_BLD = _block(a_next_BLD, dh_BLD, g_later_BD, reverse=True)
        entering_BD = jnp.where(start == 0, h_BD, h_BTD[:, jnp.maximum(start - 1, 0)])
        h_before_BLD = jnp.concatenate([entering_BD[:, None], h_BLD[:, :-1]], axis=1)
        da_BTD, g_BTD = _put(da_BTD, g_BLD * h_before_BLD, start), _put(g_BTD, g_BLD, start)
        return a_BLD[:, 0], g_BLD[:, 0], da_BTD, g_BTD

    nothing = jnp.zeros_like(h_BD), jnp.zeros_like(h_BD)
    results = jnp.zeros_like(a_BTD), jnp.zeros_like(dh_BTD)
    a_BD, g_BD, da_BTD, g_BTD = jax.lax.fori_loop(0, blocks, step, (*nothing, *results))
    return da_BTD[:, :time], g_BTD[:, :time], a_BD * g_BD


_recurrence.defvjp(_forward, _backward)


def _whole_blocks(*arrays_BTD):
    """(tokens, tokens of a block, blocks, the arrays padded with zeros to whole blocks)."""
    time = arrays_BTD[0].shape[1]
    size = min(time, BLOCK)
    blocks = -(-time // size)
    padding = ((0, 0), (0, blocks * size - time), (0, 0))
    return time, size, blocks, [jnp.pad(x_BTD, padding) for x_BTD in arrays_BTD]


def _slice(x_BTD, start, size: int):
    return jax.lax.dynamic_slice_in_dim(x_BTD, start, size, axis=1)


def _put(x_BTD, x_BLD, start):
    return jax.lax.dynamic_update_slice_in_dim(x_BTD, x_BLD, start, axis=1)


def chunk_length(time: int) -> int:
    """Tokens per chunk: the smallest power of two >= sqrt(T), so that both sweeps are short."""
    return 2 ** math.ceil(math.log2(max(time, 1)) / 2)


def _block(a_BTD, b_BTD, h_BD, reverse):
    """All h of a block from h_BD, the state before the first token or, if reverse, after the last."""
    batch, time, channels = a_BTD.shape
    length = chunk_length(time)
    chunks = -(-time // length)
    # Added tokens have a = b = 0 and are cut off again. In reverse they reset h to 0, which is exact:
    # only the last block has added tokens, and the adjoint enters it with 0.
    padding = ((0, 0), (0, chunks * length - time), (0, 0))
    a_BNCD, b_BNCD = (
        jnp.pad(x, padding).reshape(batch, chunks, length, channels) for x in (a_BTD, b_BTD)
    )

    # Slices in place: moving C to the front for lax.scan made this three times slower.
    def place(i):
        return length - 1 - i if reverse else i

    def at(x_BNCD, i):
        return jax.lax.dynamic_index_in_dim(x_BNCD, place(i), 2, keepdims=False)

    def extend(i, chunk_map):
        decay_BND, end_BND = chunk_map
        a_BND = at(a_BNCD, i)
        return a_BND * decay_BND, a_BND * end_BND + at(b_BNCD, i)

    first = at(a_BNCD, 0), at(b_BNCD, 0)
    decay_BND, end_BND = jax.lax.fori_loop(1, length, extend, first)

    def enter(h_BD, chunk):
        decay_BD, end_BD = chunk
        return decay_BD * h_BD + end_BD, h_BD

    chunk_maps = jnp.moveaxis(decay_BND, 1, 0), jnp.moveaxis(end_BND, 1, 0)
    _, enter_NBD = jax.lax.scan(enter, h_BD, chunk_maps, reverse=reverse)

    def step(i, carry):
        h_BND, h_BNCD = carry
        h_BND = at(a_BNCD, i) * h_BND + at(b_BNCD, i)
        return h_BND, jax.lax.dynamic_update_index_in_dim(h_BNCD, h_BND, place(i), 2)

    start = jnp.moveaxis(enter_NBD, 0, 1), jnp.zeros_like(b_BNCD)
    _, h_BNCD = jax.lax.fori_loop(0, length, step, start)
    return h_BNCD.reshape(batch, chunks * length, channels)[:, :time]
