"""The gates as the reference and the chunked form read them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.forms import Call
from kernels_pallas.linear_recurrence.blocks import MAX_SLOPE


def prepare(gated: bool, a_BTD, b_BTD, call: Call):
    """(a, b) in `call.dtype`: a is 0 at document starts and padding, b at padding.

    Where `gated`, a_BTD and b_BTD are log_a and x, of which a and b are made here.
    """
    padding_BT1 = call.padding_BT[:, :, None]
    a_BTD, b_BTD = a_BTD.astype(call.dtype), b_BTD.astype(call.dtype)
    if gated:
        # A log-gate of -inf would give 0 * inf = NaN in the gradient of exp.
        log_a_BTD = jnp.where(padding_BT1, 0, jnp.maximum(a_BTD, -1e30))
        a_BTD = jnp.exp(log_a_BTD)
        factor_BTD = sqrt_bounded(-jnp.expm1(2 * log_a_BTD))
        b_BTD = jnp.where(call.starts_BT[:, :, None], 1, factor_BTD) * b_BTD
    a_BTD = jnp.where(call.resets_BT[:, :, None], 0, a_BTD)
    return a_BTD, jnp.where(padding_BT1, 0, b_BTD)


@jax.custom_jvp
def sqrt_bounded(x: Float[Array, "*any"]) -> Float[Array, "*any"]:
    """sqrt(x), whose slope is infinite at 0, with a slope of at most `MAX_SLOPE`."""
    return jnp.sqrt(x)


@sqrt_bounded.defjvp
def _sqrt_bounded_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    slope = jnp.minimum(0.5 * jax.lax.rsqrt(jnp.maximum(x, 1e-30)), MAX_SLOPE)
    return jnp.sqrt(x), dx * slope
