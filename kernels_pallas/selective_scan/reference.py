"""The selective scan token by token: the oracle, differentiated by autodiff."""

import jax
import jax.numpy as jnp

from kernels_pallas.selective_scan import inputs


def selective_scan(x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, call):
    """(y_BTD, last h_BDN) of h_t = exp(dt_t a) h_{t-1} + dt_t x_t b_t^T, y_t = h_t c_t."""
    x_BTD, dt_BTD, a_DN, b_BTN, c_BTN = inputs.prepare(x_BTD, dt_BTD, a_DN, b_BTN, c_BTN, call)

    def step(h_BDN, token):
        x_BD, dt_BD, b_BN, c_BN, starts_B = token
        h_BDN = jnp.where(starts_B[:, None, None], 0, h_BDN)
        decay_BDN = jnp.exp(dt_BD[:, :, None] * a_DN[None])
        h_BDN = decay_BDN * h_BDN + (dt_BD * x_BD)[:, :, None] * b_BN[:, None]
        return h_BDN, jnp.sum(h_BDN * c_BN[:, None], axis=-1)

    tokens = (x_BTD, dt_BTD, b_BTN, c_BTN, call.starts_BT)
    h_BDN, y_TBD = jax.lax.scan(step, call.state_B, [jnp.moveaxis(x, 1, 0) for x in tokens])
    return call.without_padding(jnp.moveaxis(y_TBD, 0, 1)), h_BDN
