"""The causal convolution as W shifted multiply-adds, which XLA fuses into one pass.

Its custom_vjp saves only the inputs: autodiff would save one masked copy of x per tap, and the sums
before the activation, which the backward pass computes again.
"""

import functools

import jax
import jax.numpy as jnp

from kernels_pallas import dispatch
from kernels_pallas.causal_conv.activation import activated, of_sums
from kernels_pallas.causal_conv.reach import reach

BLOCK = 64  # tokens


def causal_conv(x_BTD, state_BSD, kernel_WD, bias_D, segment_ids_BS, activation):
    """y in x's dtype; `segment_ids_BS` are those of the state and of x."""
    # One array of state and input: S = W - 1 + T.
    x_BSD = jnp.concatenate([state_BSD, x_BTD], axis=1)
    return _conv(activation, x_BSD, kernel_WD, bias_D, segment_ids_BS)


def sums(x_BSD, kernel_WD, bias_D, valid_BT1, reach_BT1):
    """The sums over taps, with the bias, of the last S - (W - 1) tokens: float32, or float64."""
    dtype = dispatch.accumulator_dtype(x_BSD, kernel_WD)
    slots, time = kernel_WD.shape[0] - 1, reach_BT1.shape[1]
    y_BTD = jnp.where(valid_BT1, bias_D.astype(dtype)[None, None], 0)
    for tap, kernel_D in enumerate(kernel_WD.astype(dtype)):
        x_BTD = x_BSD[:, slots - tap : slots - tap + time].astype(dtype)
        y_BTD += jnp.where(tap <= reach_BT1, x_BTD * kernel_D[None, None], 0)
    return y_BTD


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(activation, x_BSD, kernel_WD, bias_D, segment_ids_BS):
    """y of the last S - (W - 1) tokens; the first W - 1 come from the state."""
    y_BTD = sums(x_BSD, kernel_WD, bias_D, *reach(segment_ids_BS, kernel_WD.shape[0] - 1))
    return activated(y_BTD, activation).astype(x_BSD.dtype)


def _forward(activation, x_BSD, kernel_WD, bias_D, segment_ids_BS):
    out = _conv(activation, x_BSD, kernel_WD, bias_D, segment_ids_BS)
    return out, (x_BSD, kernel_WD, bias_D, segment_ids_BS)


def _backward(activation, residuals, dy_BTD):
    x_BSD, kernel_WD, bias_D, segment_ids_BS = residuals
    dtype = dispatch.accumulator_dtype(x_BSD, kernel_WD)
    slots = kernel_WD.shape[0] - 1
    valid_BT1, reach_BT1 = reach(segment_ids_BS, slots)
    dy_BTD = dy_BTD.astype(dtype)
    if activation is not None:
        sums_BTD = sums(x_BSD, kernel_WD, bias_D, valid_BT1, reach_BT1)
        dy_BTD = of_sums(sums_BTD, dy_BTD, activation)  # dy of the sums, from here on
    # Used twice per tap: without the barrier XLA recomputes its producer each time.
    dy_BTD = jax.lax.optimization_barrier(dy_BTD)
    # Padded once, so that each tap reads a slice: XLA does not vectorise a sum of padded taps.
    around = ((0, 0), (slots, slots), (0, 0))
    padded_BPD = jnp.pad(dy_BTD, around)
    reach_BP1 = jnp.pad(reach_BT1, around, constant_values=-1)
    padded_BPD, reach_BP1 = jax.lax.optimization_barrier((padded_BPD, reach_BP1))
    dx_BSD, size = 0, x_BSD.shape[1]
    for tap, kernel_D in enumerate(kernel_WD.astype(dtype)):
        dy_tap_BSD, reach_BS1 = (x[:, tap : tap + size] for x in (padded_BPD, reach_BP1))
        dx_BSD += jnp.where(tap <= reach_BS1, dy_tap_BSD * kernel_D[None, None], 0)
    dbias_D = jnp.sum(jnp.where(valid_BT1, dy_BTD, 0), axis=(0, 1))
    return (
        dx_BSD.astype(x_BSD.dtype),
        _kernel_gradient(x_BSD, dy_BTD, reach_BT1, slots).astype(kernel_WD.dtype),
        dbias_D.astype(bias_D.dtype),
        None,
    )


_conv.defvjp(_forward, _backward)


def _kernel_gradient(x_BSD, dy_BTD, reach_BT1, slots: int):
    """The sum over time of dy_t * x_{t - tap} for every tap: (W, D).

    Blocks of tokens are added elementwise, in order; sums over whole arrays were five to ten times
    slower on CPUs.
    """
    time = dy_BTD.shape[1]
    block = min(BLOCK, time)
    blocks = time // block

    def products(start, size):
        dy_BCD, reach_BC1 = (
            jax.lax.dynamic_slice_in_dim(x, start, size, axis=1) for x in (dy_BTD, reach_BT1)
        )
        past_BSD = jax.lax.dynamic_slice_in_dim(x_BSD, start, size + slots, axis=1)
        for tap in range(slots + 1):
            # Masked after the product: a past token of another document may be NaN.
            product_BCD = dy_BCD * past_BSD[:, slots - tap : slots - tap + size]
            yield jnp.where(tap <= reach_BC1, product_BCD, 0)

    def step(i, sums):
        return tuple(sum_BCD + p for sum_BCD, p in zip(sums, products(i * block, block)))

    zero_BCD = jnp.zeros((dy_BTD.shape[0], block, dy_BTD.shape[2]), dy_BTD.dtype)
    sums = jax.lax.fori_loop(0, blocks, step, (zero_BCD,) * (slots + 1))
    rest = products(blocks * block, time - blocks * block)
    return jnp.stack(
        [jnp.sum(a, axis=(0, 1)) + jnp.sum(b, axis=(0, 1)) for a, b in zip(sums, rest)]
    )
