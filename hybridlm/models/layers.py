"""The linear map that layers are built from.

Parameters are float32 and are cast to the activations' dtype where they are used. Each parameter
has metadata: `axes`, the logical names of its dimensions, from which `hybridlm.parallel` derives
its sharding; `decay`, whether weight decay applies; and `muon`, whether Muon may update it (a
matrix of a hidden layer). `decay` and `muon` are False by default.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.norms import along_last
from hybridlm.parallel import gradients


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(
    x: jax.Array, kernel: jax.Array, axes: tuple[str | None, str | None] = (None, None)
) -> jax.Array:
    """x (..., I) times kernel (I, O), in x's dtype; the kernel's gradient is summed in float32.

    `axes` are the logical names of the kernel's dimensions: on a mesh, devices sum its gradient over
    their tokens and each keeps its shard (`hybridlm.parallel.gradients`).

    A custom backward pass makes the product over tokens transpose its narrower factor. On a CPU,
    XLA writes the transposed factor with strided stores, which for the hidden activations of an MLP
    took as long as the product itself.
    """
    return x @ kernel.astype(x.dtype)


def _matmul_forward(x, kernel, axes):
    return matmul(x, kernel, axes), (x, kernel)


def _matmul_backward(axes, residuals, dy):
    x, kernel = residuals
    tokens = tuple(range(x.ndim - 1))

    def kernel_gradient(x, dy):
        wide_in = x.shape[-1] > dy.shape[-1]
        narrow, wide = (dy, x) if wide_in else (x, dy)
        d_kernel = jax.lax.dot_general(
            narrow, wide, ((tokens, tokens), ((), ())), preferred_element_type=kernel.dtype
        )
        # the barrier keeps XLA from folding this transpose back into the product
        return jax.lax.optimization_barrier(d_kernel).T if wide_in else d_kernel

    d_kernel = gradients.over_tokens(kernel_gradient, x, dy, axes)
    return dy @ kernel.astype(x.dtype).T, d_kernel


matmul.defvjp(_matmul_forward, _matmul_backward)


class Linear(nnx.Module):
    """y = x @ kernel + bias over the last axis.

    The kernel is initialised LeCun-normal times `scale`. The bias, absent by default, starts at 0.
    `muon=False` excludes the kernel from Muon.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        axes: tuple[str, str],
        *,
        rngs: nnx.Rngs,
        scale: float = 1.0,
        bias: bool = False,
        muon: bool = True,
    ):
        kernel = jax.random.normal(rngs.params(), (d_in, d_out)) * (scale * d_in**-0.5)
        self.axes = axes
        self.kernel = nnx.Param(kernel, axes=axes, decay=True, muon=muon)
        self.bias = nnx.Param(jnp.zeros(d_out), axes=axes[1:]) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = matmul(x, self.kernel[...], self.axes)
        if self.bias is None:
            return y
        return y + along_last(self.bias[...], y).astype(y.dtype)


def orthogonal_linear(
    d_in: int, d_out: int, axes: tuple[str, str], gain: float, *, rngs: nnx.Rngs
) -> Linear:
    """A `Linear` whose kernel starts as `gain` times a matrix with orthonormal rows, or columns if fewer."""
    made, initial = Linear(d_in, d_out, axes, rngs=rngs), jax.nn.initializers.orthogonal(gain)

    # A factorisation is not split over devices: of all layers at once, each device would hold all.
    @jax.custom_batching.sequential_vmap
    def one_layer(key):
        return initial(key, (d_in, d_out))

    made.kernel[...] = one_layer(rngs.params())
    return made


class ScaledLinear(Linear):
    """A linear map whose output is cut into equal parts, each multiplied by a constant factor."""

    def __init__(self, *sizes: Any, factors: tuple[float, ...], **options: Any):
        super().__init__(*sizes, **options)
        self.factors = factors

    def __call__(self, x: jax.Array) -> jax.Array:
        y = super().__call__(x)
        parts = y.reshape(*y.shape[:-1], len(self.factors), -1)
        return (parts * jnp.asarray(self.factors, y.dtype)[:, None]).reshape(y.shape)


class Scale(nnx.Module):
    """Multiplies by a constant factor."""

    def __init__(self, factor: float):
        self.factor = factor

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * jnp.asarray(self.factor, x.dtype)


class Identity(nnx.Module):
    """Returns its input; replaces an optional part that is left out."""

    def __call__(self, x: jax.Array, *_: jax.Array) -> jax.Array:
        return x


def scale(factor: float) -> Identity | Scale:
    """The multiplication by a factor, left out where it is 1."""
    return Identity() if factor == 1.0 else Scale(factor)
