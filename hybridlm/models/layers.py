"""The parts that every block is made of: Linear, RMSNorm and the gated MLP.

Parameters are float32 and are cast to the activations' dtype where they are used. Each carries
`axes`, the logical names of its dimensions, from which `hybridlm.parallel` derives its sharding.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx


def at_least_float32(x: jax.Array) -> jax.Array:
    """x in float32, or in float64 where it is that already (the tests' reference precision)."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x (..., I) times kernel (I, O), in x's dtype; the kernel's gradient is summed in float32.

    Its backward pass is written out so that the product over tokens transposes the narrower of
    its factors: XLA on a CPU writes the transposed one across its rows, which for the hidden
    activations of an MLP took as long as the product itself.
    """
    return x @ kernel.astype(x.dtype)


def _matmul_forward(x, kernel):
    return matmul(x, kernel), (x, kernel)


def _matmul_backward(residuals, dy):
    x, kernel = residuals
    tokens = tuple(range(x.ndim - 1))
    wide_in = x.shape[-1] > dy.shape[-1]
    narrow, wide = (dy, x) if wide_in else (x, dy)
    d_kernel = jax.lax.dot_general(
        narrow, wide, ((tokens, tokens), ((), ())), preferred_element_type=kernel.dtype
    )
    if wide_in:  # the barrier keeps XLA from folding this transpose back into the product
        d_kernel = jax.lax.optimization_barrier(d_kernel).T
    return dy @ kernel.astype(x.dtype).T, d_kernel


matmul.defvjp(_matmul_forward, _matmul_backward)


class Linear(nnx.Module):
    """y = x @ kernel over the last axis, no bias; LeCun-normal times `scale`."""

    def __init__(
        self, d_in: int, d_out: int, axes: tuple[str, str], *, rngs: nnx.Rngs, scale: float = 1.0
    ):
        kernel = jax.random.normal(rngs.params(), (d_in, d_out)) * (scale * d_in**-0.5)
        self.kernel = nnx.Param(kernel, axes=axes)

    def __call__(self, x: jax.Array) -> jax.Array:
        return matmul(x, self.kernel[...])


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis, statistics in float32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float, axes: tuple[str] = ("norm",)):
        self.scale = nnx.Param(jnp.ones(size), axes=axes)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = at_least_float32(x)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))
        return (x32 * inverse * scale).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "swiglu": jax.nn.silu,
    "geglu": lambda x: jax.nn.gelu(x, approximate=True),
}


class GatedMLP(nnx.Module):
    """down(act(gate x) * up x) (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int, kind: str, out_scale: float, *, rngs: nnx.Rngs):
        self.gate = Linear(width, hidden, ("embed", "mlp"), rngs=rngs)
        self.up = Linear(width, hidden, ("embed", "mlp"), rngs=rngs)
        self.down = Linear(hidden, width, ("mlp", "embed"), rngs=rngs, scale=out_scale)
        self.kind = kind

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return self.down(ACTIVATIONS[self.kind](self.gate(x_BTD)) * self.up(x_BTD))


class Identity(nnx.Module):
    """Stands where an optional part is left out."""

    def __call__(self, x: jax.Array, *_: jax.Array) -> jax.Array:
        return x
