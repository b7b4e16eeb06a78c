"""The linear recurrence in chunks: 2 sqrt(T) sequential steps instead of T.

Time is cut into N chunks of C tokens. All chunks run side by side: a first sweep over the
C positions gives every chunk's end state (from zero) and its product of decays, a scan
over the N chunks gives every chunk's entering state, a second sweep runs the recurrence
itself from there. Running it twice beats storing cumulative products, and every h comes out
of the plain recurrence: products of decays are only ever multiplied, never divided by or
exponentiated, so a = 0 and a = 1 are exact.
"""

import math

import jax
import jax.numpy as jnp


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
    g_BTD = _recurrence(
        jnp.flip(a_next_BTD, 1), jnp.flip(dh_BTD, 1), jnp.zeros_like(h_BD)
    )
    g_BTD = jnp.flip(g_BTD, 1)
    h_before_BTD = jnp.concatenate([h_BD[:, None], h_BTD[:, :-1]], axis=1)
    return g_BTD * h_before_BTD, g_BTD, a_BTD[:, 0] * g_BTD[:, 0]


linear_recurrence.defvjp(_forward, _backward)


def chunk_length(time: int) -> int:
    """Tokens per chunk: the power of two nearest above sqrt(T), so both sweeps are short."""
    return 2 ** math.ceil(math.log2(max(time, 1)) / 2)


def _recurrence(a_BTD, b_BTD, h_BD):
    batch, time, channels = a_BTD.shape
    length = chunk_length(time)
    chunks = -(-time // length)

    def to_CBND(x_BTD):
        # Padding with a = b = 0 comes after the last token and is cut off again.
        x_BTD = jnp.pad(x_BTD, ((0, 0), (0, chunks * length - time), (0, 0)))
        return jnp.moveaxis(x_BTD.reshape(batch, chunks, length, channels), 2, 0)

    a_CBND, b_CBND = to_CBND(a_BTD), to_CBND(b_BTD)

    def chunk_map(carry, gates):
        decay_BND, h_BND = carry
        a_BND, b_BND = gates
        return (a_BND * decay_BND, a_BND * h_BND + b_BND), None

    (decay_BND, end_BND), _ = jax.lax.scan(
        chunk_map, (a_CBND[0], b_CBND[0]), (a_CBND[1:], b_CBND[1:])
    )

    def enter(h_BD, chunk):
        decay_BD, end_BD = chunk
        return decay_BD * h_BD + end_BD, h_BD

    _, enter_NBD = jax.lax.scan(
        enter, h_BD, (jnp.moveaxis(decay_BND, 1, 0), jnp.moveaxis(end_BND, 1, 0))
    )

    def step(h_BND, gates):
        a_BND, b_BND = gates
        h_BND = a_BND * h_BND + b_BND
        return h_BND, h_BND

    _, h_CBND = jax.lax.scan(step, jnp.moveaxis(enter_NBD, 0, 1), (a_CBND, b_CBND))
    return jnp.moveaxis(h_CBND, 0, 2).reshape(batch, chunks * length, channels)[:, :time]
