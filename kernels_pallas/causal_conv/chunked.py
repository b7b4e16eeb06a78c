"""The causal convolution as W shifted multiply-adds, which XLA fuses into one pass.

Its custom_vjp keeps only the inputs: autodiff would keep one masked copy of x per tap.
"""

import math

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
    valid_BT1, reach_BT1 = _reach(segment_ids_BS, slots)
    # Used once per tap twice over: without the barrier XLA recomputes its producer each time.
    dy_BTD = jax.lax.optimization_barrier(dy_BTD.astype(dtype))
    dx_BSD = jnp.zeros(x_BSD.shape, dtype)
    for tap, kernel_D in enumerate(kernel_WD.astype(dtype)):
        start = slots - tap
        dy_tap_BTD = jnp.where(tap <= reach_BT1, dy_BTD, 0)
        dx_BSD += jnp.pad(dy_tap_BTD * kernel_D[None, None], ((0, 0), (start, tap), (0, 0)))
    dbias_D = jnp.sum(jnp.where(valid_BT1, dy_BTD, 0), axis=(0, 1))
    return (
        dx_BSD.astype(x_BSD.dtype),
        _kernel_gradient(x_BSD, dy_BTD, reach_BT1, slots).astype(kernel_WD.dtype),
        dbias_D.astype(bias_D.dtype),
        None,
    )


causal_conv.defvjp(_forward, _backward)


def _kernel_gradient(x_BSD, dy_BTD, reach_BT1, slots: int):
    """For every tap the sum over time of dy_t * x_{t - tap}: (W, D).

    N chunks of C tokens run side by side over C steps that add into one small accumulator;
    whole-array products and sums were ten times slower on CPUs (temporaries of x's size).
    """
    batch, time, channels = dy_BTD.shape
    length = max(slots, 2 ** math.ceil(math.log2(time) / 2))
    chunks = -(-time // length)
    added = chunks * length - time
    dy_BNCD, reach_BNC1 = (
        jnp.pad(x, ((0, 0), (0, added), (0, 0))).reshape(batch, chunks, length, x.shape[-1])
        for x in (dy_BTD, reach_BT1)
    )
    # Every chunk of x with the W - 1 tokens before it (token t stands at slots + t).
    x_BSD = jnp.pad(x_BSD, ((0, 0), (0, added + length - slots), (0, 0)))
    x_BNCD = x_BSD.reshape(batch, chunks + 1, length, channels)
    x_BNSD = jnp.concatenate([x_BNCD[:, :-1], x_BNCD[:, 1:, :slots]], axis=2)

    def step(i, sums):
        dy_BND, reach_BN1 = (
            jax.lax.dynamic_index_in_dim(x, i, 2, keepdims=False) for x in (dy_BNCD, reach_BNC1)
        )
        return tuple(
            total_BND
            + jnp.where(tap <= reach_BN1, dy_BND, 0)
            * jax.lax.dynamic_index_in_dim(x_BNSD, i + slots - tap, 2, keepdims=False)
            for tap, total_BND in enumerate(sums)
        )

    zero_BND = jnp.zeros((batch, chunks, channels), dy_BTD.dtype)
    sums = jax.lax.fori_loop(0, length, step, (zero_BND,) * (slots + 1))
    return jnp.stack([jnp.sum(total_BND, axis=(0, 1)) for total_BND in sums])


def _reach(segment_ids_BS, slots: int):
    """Per token of the call: is it no padding, and how many taps back does its document go
    (-1 for padding)."""
    index_BS = jax.lax.broadcasted_iota(jnp.int32, segment_ids_BS.shape, 1)
    reach_BS = index_BS - segments.first_token_index(segment_ids_BS)
    valid_BS = segment_ids_BS != 0
    reach_BS = jnp.where(valid_BS, reach_BS, -1)
    # The barrier keeps XLA from recomputing document starts for every channel.
    return jax.lax.optimization_barrier((valid_BS[:, slots:, None], reach_BS[:, slots:, None]))
