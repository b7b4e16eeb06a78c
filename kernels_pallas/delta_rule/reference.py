"""The delta rule token by token: the oracle, differentiated by autodiff."""

import jax
import jax.numpy as jnp

from kernels_pallas.delta_rule import inputs


def delta_rule(q_BTGK, k_BTGK, v_BTHV, beta_BTH, log_decay, erase_BTGK, call):
    """(o_BTHV, last S_BHKV) of S <- Diag(a) S, S <- S + beta k (v - S^T e)^T, o = scale S^T q."""
    q_BTGK, k_BTGK, v_BTHV, beta_BTH, log_decay_BTHK, erase_BTGK = inputs.prepare(
        q_BTGK, k_BTGK, v_BTHV, beta_BTH, log_decay, erase_BTGK, call
    )
    erase_BTGK = k_BTGK if erase_BTGK is None else erase_BTGK
    repeats = v_BTHV.shape[2] // k_BTGK.shape[2]
    decay_BTHK = (
        jnp.ones_like(beta_BTH)[..., None] if log_decay_BTHK is None else jnp.exp(log_decay_BTHK)
    )

    def step(s_BHKV, token):
        q_BGK, k_BGK, e_BGK, v_BHV, beta_BH, decay_BHK, reset_B = token
        q_BHK, k_BHK, e_BHK = (jnp.repeat(x, repeats, axis=1) for x in (q_BGK, k_BGK, e_BGK))
        s_BHKV = jnp.where(reset_B[:, None, None, None], 0, s_BHKV) * decay_BHK[..., None]
        seen_BHV = jnp.einsum("bhk,bhkv->bhv", e_BHK, s_BHKV, precision=call.precision)
        delta_BHV = beta_BH[..., None] * (v_BHV - seen_BHV)
        s_BHKV = s_BHKV + k_BHK[..., None] * delta_BHV[..., None, :]
        return s_BHKV, jnp.einsum("bhk,bhkv->bhv", q_BHK, s_BHKV, precision=call.precision)

    tokens = (q_BTGK, k_BTGK, erase_BTGK, v_BTHV, beta_BTH, decay_BTHK, call.resets_BT)
    s_BHKV, o_TBHV = jax.lax.scan(step, call.state_B, [jnp.moveaxis(x, 1, 0) for x in tokens])
    return jnp.moveaxis(o_TBHV, 0, 1), s_BHKV
