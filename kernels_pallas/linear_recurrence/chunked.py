"""The linear recurrence in chunks: of T tokens, 2 sqrt(T) sequential steps instead of T.

Time is cut into blocks of at most 1,024 tokens, one after the other, whose numbers fit the cache,
and a block of T tokens into N chunks of C = sqrt(T). All chunks run side by side: a first sweep over the
C positions gives every chunk's end state (from zero) and its product of decays, a scan
over the N chunks gives every chunk's entering state, a second sweep runs the recurrence
itself from there. Running it twice beats storing cumulative products, and every h comes out
of the plain recurrence: products of decays are only ever multiplied, never divided by or
exponentiated, so a = 0 and a = 1 are exact.
"""

import math

import jax
import jax.numpy as jnp

BLOCK = 1024  # tokens


@jax.custom_vjp
def linear_recurrence(a_BTD, b_BTD, h_BD):
    """h_t = a_t h_{t-1} + b_t from h_BD; boundaries are already zeros in a_BTD."""
    return _recurrence(a_BTD, b_BTD, h_BD)


def _forward(a_BTD, b_BTD, h_BD):
    h_BTD = _recurrence(a_BTD, b_BTD, h_BD)
    return h_BTD, (a_BTD, h_BTD, h_BD)


def _backward(residuals, dh_BTD):
    # The adjoint g_t = dh_t + a_{t+1} g_{t+1} is the same recurrence run from the end.
    a_BTD, h_BTD, h_BD = residuals
    a_next_BTD = jnp.concatenate([a_BTD[:, 1:], jnp.zeros_like(a_BTD[:, :1])], axis=1)
    g_BTD = _recurrence(a_next_BTD, dh_BTD, jnp.zeros_like(h_BD), reverse=True)
    h_before_BTD = jnp.concatenate([h_BD[:, None], h_BTD[:, :-1]], axis=1)
    return g_BTD * h_before_BTD, g_BTD, a_BTD[:, 0] * g_BTD[:, 0]


linear_recurrence.defvjp(_forward, _backward)


def chunk_length(time: int) -> int:
    """Tokens per chunk: the power of two nearest above sqrt(T), so both sweeps are short."""
    return 2 ** math.ceil(math.log2(max(time, 1)) / 2)


def _recurrence(a_BTD, b_BTD, h_BD, reverse=False):
    """From h_BD forward in time, or backward from the last token to the first.

    Long sequences go block by block: what a block reads in strides stays in the cache.
    """
    time = a_BTD.shape[1]
    blocks = -(-time // BLOCK)
    if blocks == 1:
        return _block(a_BTD, b_BTD, h_BD, reverse)[1]
    padding = ((0, 0), (0, blocks * BLOCK - time), (0, 0))
    a_BTD, b_BTD = (jnp.pad(x, padding) for x in (a_BTD, b_BTD))

    def step(i, carry):
        h_BD, h_BTD = carry
        start = BLOCK * (blocks - 1 - i if reverse else i)
        a_BSD, b_BSD = (
            jax.lax.dynamic_slice_in_dim(x, start, BLOCK, axis=1) for x in (a_BTD, b_BTD)
        )
        h_BD, h_BSD = _block(a_BSD, b_BSD, h_BD, reverse)
        return h_BD, jax.lax.dynamic_update_slice_in_dim(h_BTD, h_BSD, start, axis=1)

    _, h_BTD = jax.lax.fori_loop(0, blocks, step, (h_BD, jnp.zeros_like(b_BTD)))
    return h_BTD[:, :time]


def _block(a_BTD, b_BTD, h_BD, reverse):
    """(h after the last step, every h)."""
    batch, time, channels = a_BTD.shape
    length = chunk_length(time)
    chunks = -(-time // length)
    # Added tokens have a = b = 0: they end the sequence (reverse: they restart from h = 0,
    # which is exact because the adjoint enters with h_BD = 0). They are cut off again.
    padding = ((0, 0), (0, chunks * length - time), (0, 0))
    a_BNCD, b_BNCD = (
        jnp.pad(x, padding).reshape(batch, chunks, length, channels) for x in (a_BTD, b_BTD)
    )

    # Slices of time in place: moving C to the front for lax.scan made this three times slower.
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
    h_BTD = h_BNCD.reshape(batch, chunks * length, channels)[:, :time]
    return h_BTD[:, 0 if reverse else -1], h_BTD
