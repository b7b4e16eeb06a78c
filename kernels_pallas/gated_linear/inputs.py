"""The inputs as the forms read them."""

import jax.numpy as jnp

from kernels_pallas.forms import Call


def prepare(q_BTGK, k_BTGK, v_BTHV, log_decay, call: Call):
    """(scaled q, k, v, log_decay) in `call.dtype`, zeros at padding, for the XLA forms."""
    q_BTGK, k_BTGK, v_BTHV = (
        call.without_padding(x.astype(call.dtype)) for x in (q_BTGK, k_BTGK, v_BTHV)
    )
    if log_decay.ndim > 1:
        log_decay = call.without_padding(log_decay)
    return call.scaled(q_BTGK), k_BTGK, v_BTHV, log_decay.astype(call.dtype)


def per_token(log_decay, v_BTHV, call: Call):
    """Log-decays (B, T, H) or (B, T, H, K), also of those fixed per head, for the kernels."""
    if log_decay.ndim > 1:
        return log_decay
    # Cast before it is broadcast: a fixed decay's gradient is a sum over all tokens.
    return jnp.broadcast_to(log_decay.astype(call.dtype), v_BTHV.shape[:3])
