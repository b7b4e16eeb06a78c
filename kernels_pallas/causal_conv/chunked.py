"""The causal convolution as W shifted multiply-adds, which XLA fuses into one pass.

Its custom_vjp keeps only the inputs: autodiff would keep one masked copy of x per tap.
"""

import jax
import jax.numpy as jnp

from kernels_pallas import dispatch, segments


@jax.custom_vjp
def causal_conv(x_BSD, kernel_WD, bias_D, segment_ids_BS):
    """y of the last S - (W - 1) tokens; the first W - 1 are the carried ones."""
    dtype = dispatch.accumulator_dtype(x_BSD, kernel_WD)
    slots = kernel_WD.shape[0] - 1
    time = x_BSD.shape[1] - slots
    valid_BT1, reach_BT1 = _reach(segment_ids_BS, slots)
    y_BTD = jnp.where(valid_BT1, bias_D.astype(dtype)[None, None], 0)
    for tap, kernel_D in enumerate(kernel_WD.astype(dtype)):
        x_BTD = x_BSD[:, slots - tap : slots - tap + time].astype(dtype)
        y_BTD += jnp.where(tap <= reach_BT1, x_BTD * kernel_D[None, None], 0)
    return y_BTD.astype(x_BSD.dtype)


def _forward(x_BSD, kernel_WD, bias_D, segment_ids_BS):
    out = causal_conv(x_BSD, kernel_WD, bias_D, segment_ids_BS)
    return out, (x_BSD, kernel_WD, bias_D, segment_ids_BS)


def _backward(residuals, dy_BTD):
    x_BSD, kernel_WD, bias_D, segment_ids_BS = residuals
    dtype = dispatch.accumulator_dtype(x_BSD, kernel_WD)
    slots = kernel_WD.shape[0] - 1
    time = x_BSD.shape[1] - slots
    valid_BT1, reach_BT1 = _reach(segment_ids_BS, slots)
    dy_BTD = dy_BTD.astype(dtype)
    dx_BSD = jnp.zeros(x_BSD.shape, dtype)
    dkernel = []
    for tap, kernel_D in enumerate(kernel_WD.astype(dtype)):
        start = slots - tap
        dy_tap_BTD = jnp.where(tap <= reach_BT1, dy_BTD, 0)
        x_BTD = x_BSD[:, start : start + time].astype(dtype)
        dkernel.append(jnp.sum(dy_tap_BTD * x_BTD, axis=(0, 1)))
        dx_BSD += jnp.pad(dy_tap_BTD * kernel_D[None, None], ((0, 0), (start, tap), (0, 0)))
    dbias_D = jnp.sum(jnp.where(valid_BT1, dy_BTD, 0), axis=(0, 1))
    return (
        dx_BSD.astype(x_BSD.dtype),
        jnp.stack(dkernel).astype(kernel_WD.dtype),
        dbias_D.astype(bias_D.dtype),
        None,
    )


causal_conv.defvjp(_forward, _backward)


def _reach(segment_ids_BS, slots: int):
    """Per token of the call: is it no padding, and how many taps back does its document go
    (-1 for padding)."""
    index_BS = jax.lax.broadcasted_iota(jnp.int32, segment_ids_BS.shape, 1)
    reach_BS = index_BS - segments.first_token_index(segment_ids_BS)
    valid_BS = segment_ids_BS != 0
    reach_BS = jnp.where(valid_BS, reach_BS, -1)
    return valid_BS[:, slots:, None], reach_BS[:, slots:, None]
