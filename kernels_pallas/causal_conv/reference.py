"""The causal convolution token by token: the oracle, differentiated by autodiff."""

import jax
import jax.numpy as jnp

from kernels_pallas import dispatch


def causal_conv(x_BTD, state_BSD, kernel_WD, bias_D, segment_ids_BS, activation):
    """y in x's dtype; `segment_ids_BS` are those of the state and of x."""
    x_BSD = jnp.concatenate([state_BSD, x_BTD], axis=1)
    dtype = dispatch.accumulator_dtype(x_BSD, kernel_WD)
    width = kernel_WD.shape[0]
    kernel_WD, bias_D = kernel_WD.astype(dtype), bias_D.astype(dtype)

    def step(carry, token):
        x_BWD, ids_BW = carry  # newest last
        x_BD, ids_B = token
        x_BWD = jnp.concatenate([x_BWD, x_BD[:, None]], axis=1)
        ids_BW = jnp.concatenate([ids_BW, ids_B[:, None]], axis=1)
        y_BD = jnp.zeros_like(x_BD)
        connected_B = ids_B != 0
        for tap in range(width):
            connected_B = connected_B & (ids_BW[:, width - 1 - tap] == ids_B)
            term_BD = kernel_WD[tap][None] * x_BWD[:, width - 1 - tap]
            y_BD = y_BD + jnp.where(connected_B[:, None], term_BD, 0)
        y_BD = y_BD + jnp.where((ids_B != 0)[:, None], bias_D[None], 0)
        return (x_BWD[:, 1:], ids_BW[:, 1:]), y_BD

    x_SBD = jnp.moveaxis(x_BSD.astype(dtype), 1, 0)
    ids_SB = jnp.moveaxis(segment_ids_BS, 1, 0)
    slots = width - 1
    carry = (jnp.moveaxis(x_SBD[:slots], 0, 1), jnp.moveaxis(ids_SB[:slots], 0, 1))
    _, y_TBD = jax.lax.scan(step, carry, (x_SBD[slots:], ids_SB[slots:]))
    if activation == "silu":
        y_TBD = y_TBD * jax.nn.sigmoid(y_TBD)
    return jnp.moveaxis(y_TBD, 0, 1).astype(x_BSD.dtype)
