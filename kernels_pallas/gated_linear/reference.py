"""Gated linear attention token by token: the oracle, differentiated by autodiff."""

import jax
import jax.numpy as jnp

from kernels_pallas.gated_linear import inputs


def gated_linear(q_BTGK, k_BTGK, v_BTHV, log_decay, call):
    """(o_BTHV, last S_BHKV) of S_t = decay_t S_{t-1} + k_t v_t^T, o_t = scale S_t^T q_t."""
    q_BTGK, k_BTGK, v_BTHV, log_decay = inputs.prepare(q_BTGK, k_BTGK, v_BTHV, log_decay, call)
    batch, time, heads, _ = v_BTHV.shape
    groups, key_size = k_BTGK.shape[2:]
    if log_decay.ndim == 1:
        log_decay = jnp.broadcast_to(log_decay[None, None, :], (batch, time, heads))
    if log_decay.ndim == 3:
        log_decay = log_decay[..., None]
    decay_BTHK = jnp.broadcast_to(jnp.exp(log_decay), (batch, time, heads, key_size))
    q_BTHK, k_BTHK = (jnp.repeat(x, heads // groups, axis=2) for x in (q_BTGK, k_BTGK))

    def step(s_BHKV, token):
        q_BHK, k_BHK, v_BHV, decay_BHK, reset_B = token
        s_BHKV = jnp.where(reset_B[:, None, None, None], 0, s_BHKV)
        s_BHKV = decay_BHK[..., None] * s_BHKV + k_BHK[..., None] * v_BHV[:, :, None, :]
        return s_BHKV, jnp.einsum("bhkv,bhk->bhv", s_BHKV, q_BHK, precision=call.precision)

    tokens = (q_BTHK, k_BTHK, v_BTHV, decay_BTHK, call.starts_BT)
    s_BHKV, o_TBHV = jax.lax.scan(step, call.state_B, [jnp.moveaxis(x, 1, 0) for x in tokens])
    return call.without_padding(jnp.moveaxis(o_TBHV, 0, 1)), s_BHKV
