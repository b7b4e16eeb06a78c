"""The selective scan in blocks of tokens: states and decays are kept for one block at a time.

A loop runs over blocks of 32 tokens, and in a block over tokens, whose decays are made as they are
needed. The backward pass runs a block again to have its states. So it keeps the inputs and one state
for each block: at 4,096 tokens 128 states and those of one block, where the reference keeps 4,096
states and decays. Making a block's decays at once, for the chunked linear recurrence over its D * N
channels, took 1.4 to 1.7 times as long on a CPU.
"""

import functools

import jax
import jax.numpy as jnp

from kernels_pallas.selective_scan import inputs

BLOCK = 32  # tokens


def selective_scan(x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, call):
    """(y_BTD, last h_BDN); every form of the op has this signature."""
    batch, time, channels = x_BTD.shape
    length = min(BLOCK, time)
    blocks = -(-time // length)
    added = blocks * length - time

    def cut(x_BT):
        """(blocks, tokens of a block, B, ...). Zeros are added in front, where steps of 0 without a
        reset change nothing, so that the last token stays the last."""
        x_BT = jnp.pad(x_BT, ((0, 0), (added, 0)) + ((0, 0),) * (x_BT.ndim - 2))
        x_BNL = x_BT.reshape(batch, blocks, length, *x_BT.shape[2:])
        return jnp.moveaxis(x_BNL, (1, 2), (0, 1))

    x_BTD, dt_BTD, a_DN, b_BTN, c_BTN = inputs.prepare(x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, call)
    starts_BT = call.starts_BT[..., None, None]
    tokens = (
        dt_BTD[..., None],
        dt_BTD * x_BTD,
        b_BTN[..., None, :],
        c_BTN[..., None, :],
        starts_BT,
    )

    def step(h_BDN, token):
        dt_BD1, dx_BD, b_B1N, c_B1N, starts_B11 = token
        decay_BDN = jnp.where(starts_B11, 0, jnp.exp(dt_BD1 * a_DN[None]))
        h_BDN = decay_BDN * h_BDN + dx_BD[..., None] * b_B1N
        return h_BDN, jnp.sum(h_BDN * c_B1N, axis=-1)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def run(h_BDN, tokens):
        return jax.lax.scan(step, h_BDN, tokens)

    h_BDN, y_NLBD = jax.lax.scan(run, call.state_B, jax.tree.map(cut, tokens))
    y_BTD = jnp.moveaxis(y_NLBD.reshape(blocks * length, batch, channels), 0, 1)
    return call.without_padding(y_BTD[:, added:]), h_BDN
