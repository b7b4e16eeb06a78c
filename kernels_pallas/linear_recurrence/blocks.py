"""Shared by the kernels of all platforms: marks of tokens, and padding to whole blocks."""

import jax.numpy as jnp

from kernels_pallas.forms import Call

CONTINUES, STARTS, PADDING = 0, 1, 2  # marks of tokens
MAX_SLOPE = 1000.0  # of sqrt(1 - a^2) at a = 1, where it is infinite; recurrentgemma's bound


def marks(call: Call):
    """For every token `CONTINUES`, `STARTS` (a counts as 0) or `PADDING` (a and b count as 0)."""
    return jnp.where(call.padding_BT, PADDING, jnp.where(call.starts_BT, STARTS, CONTINUES))


def whole(a_BTD, b_BTD, marks_BT, h_BD, tokens: int, channels: int):
    """The arrays padded to multiples of `tokens` and `channels`, and h in float32. Added tokens are at
    the end and marked as padding; added channels are zeros."""
    add_time, add_channels = -a_BTD.shape[1] % tokens, -a_BTD.shape[2] % channels
    if add_time or add_channels:
        padding = ((0, 0), (0, add_time), (0, add_channels))
        a_BTD, b_BTD = (jnp.pad(x, padding) for x in (a_BTD, b_BTD))
        marks_BT = jnp.pad(marks_BT, padding[:2], constant_values=PADDING)
        h_BD = jnp.pad(h_BD, ((0, 0), (0, add_channels)))
    return a_BTD, b_BTD, marks_BT, h_BD.astype(jnp.float32)
