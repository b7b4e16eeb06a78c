"""The linear recurrence token by token: the oracle, differentiated by autodiff."""

import jax
import jax.numpy as jnp

from kernels_pallas.linear_recurrence import gates


def recurrence(gated, a_BTD, b_BTD, call):
    """h_BTD of h_t = a_t h_{t-1} + b_t; where `gated`, of a_t = exp(a_BTD) and its b_t."""
    a_BTD, b_BTD = gates.prepare(gated, a_BTD, b_BTD, call)

    def step(h_BD, token):
        a_BD, b_BD = token
        h_BD = a_BD * h_BD + b_BD
        return h_BD, h_BD

    tokens = jnp.moveaxis(a_BTD, 1, 0), jnp.moveaxis(b_BTD, 1, 0)
    _, h_TBD = jax.lax.scan(step, call.state_B, tokens)
    return jnp.moveaxis(h_TBD, 0, 1)
