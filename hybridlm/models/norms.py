"""Norms over the last axis, by their names in `model.norm`. Statistics are float32."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.settings.names import ABSENT


def at_least_float32(x: jax.Array) -> jax.Array:
    """x in float32; float64 (the reference precision of tests) stays float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class RMSNorm(nnx.Module):
    """x / rms(x) * scale (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float, axes: tuple[str] = ("norm",)):
        self.scale = nnx.Param(jnp.ones(size), axes=axes)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = at_least_float32(x)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (x32 * inverse * along_last(self._factor(), x)).astype(x.dtype)

    def _factor(self) -> jax.Array:
        return self.scale[...]


class UnitOffsetRMSNorm(RMSNorm):
    """x / rms(x) * (1 + scale), with a scale that starts at 0 (Gemma, arXiv 2403.08295)."""

    def __init__(self, size: int, eps: float, axes: tuple[str] = ("norm",)):
        self.scale = nnx.Param(jnp.zeros(size), axes=axes)
        self.eps = eps

    def _factor(self) -> jax.Array:
        return 1 + self.scale[...]


class UnitRMS(nnx.Module):
    """x / rms(x) over the last axis, without a learned scale (Llama 4's L2 norm)."""

    def __init__(self, eps: float):
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = at_least_float32(x)
        mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        return (x32 * jax.lax.rsqrt(mean_square + self.eps)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """(x - mean(x)) / std(x) * scale + bias (arXiv 1607.06450)."""

    def __init__(self, size: int, eps: float, axes: tuple[str] = ("norm",), *, bias: bool = True):
        self.scale = nnx.Param(jnp.ones(size), axes=axes)
        self.bias = nnx.Param(jnp.zeros(size), axes=axes) if bias else None
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = at_least_float32(x)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.eps) * along_last(self.scale[...], x)
        if self.bias is not None:
            normed = normed + along_last(self.bias[...], x)
        return normed.astype(x.dtype)


def layer_norm_without_bias(size: int, eps: float, axes: tuple[str] = ("norm",)) -> LayerNorm:
    """LayerNorm with a scale and no bias (Cohere, arXiv 2405.15032)."""
    return LayerNorm(size, eps, axes, bias=False)


NORMS: dict[str, Callable[[int, float], nnx.Module]] = {
    "rmsnorm": RMSNorm,
    "rmsnorm_unit_offset": UnitOffsetRMSNorm,
    "layernorm": LayerNorm,
    "layernorm_no_bias": layer_norm_without_bias,
}


#: What papers and other code call them, for errors.
OTHER_NORM_NAMES = {
    "rms": "'rmsnorm'",
    "root_mean_square": "'rmsnorm'",
    "gemma": "'rmsnorm_unit_offset'",
    "gemma_rmsnorm": "'rmsnorm_unit_offset'",
    "rmsnorm_plus_one": "'rmsnorm_unit_offset'",
    "zero_centered_rmsnorm": "'rmsnorm_unit_offset'",
    "ln": "'layernorm'",
    "layernorm_without_bias": "'layernorm_no_bias'",
    "cohere": "'layernorm_no_bias'",
    **dict.fromkeys(("batchnorm", "groupnorm", "scalenorm", "dyt", "none"), ABSENT),
}


def along_last(vector: jax.Array, x: jax.Array) -> jax.Array:
    """A vector reshaped to broadcast along the last axis of x."""
    return vector.reshape((1,) * (x.ndim - 1) + (-1,))
