"""The inputs as the reference and the chunked form read them."""

import jax
import jax.numpy as jnp

from kernels_pallas.forms import Call


def unit(x, eps: float):
    """x / sqrt(sum x^2 + eps) over the last axis, in x's dtype; statistics are float32 at least."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    norm = jax.lax.rsqrt(jnp.sum(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide * norm).astype(x.dtype)


def prepare(q_BTGK, k_BTGK, v_BTHV, beta_BTH, log_decay, erase_BTGK, call: Call):
    """(scaled q, k, v, beta, log_decay_BTHK, erase) in `call.dtype`, zeros at padding.

    log_decay_BTHK is None, or has a last axis of 1 (per head) or K (per channel). erase is None
    where it is k.
    """
    inputs = q_BTGK, k_BTGK, v_BTHV, beta_BTH, per_channel(log_decay), erase_BTGK
    q_BTGK, *others = jax.tree.map(lambda x: call.without_padding(x.astype(call.dtype)), inputs)
    return call.scaled(q_BTGK), *others


def per_channel(log_decay):
    """(B, T, H, 1 or K) of log-decays (B, T, H) or (B, T, H, K); None of None."""
    return log_decay[..., None] if log_decay is not None and log_decay.ndim == 3 else log_decay
