"""Parts that several mixers share: the short convolution, gated norms, initial time steps."""

from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.norms import at_least_float32
from hybridlm.parallel import ops
from hybridlm.settings.bounds import Between
from kernels_pallas import causal_conv
from kernels_pallas.delta_rule.inputs import unit

#: Added to the sum of squares of queries and keys that get length 1.
L2_EPS = 1e-6

#: Taps of a short convolution, as many as the operation takes.
ConvWidth = Annotated[int, Between(1, causal_conv.MAX_WIDTH)]


class ShortConv(nnx.Module):
    """Depthwise causal convolution over time that stops at document boundaries, and its activation.

    kernel[0] multiplies the current token. The kernel starts normal with variance 1 / width, the
    bias 0. `activation` is that of `causal_conv`: "silu", or None for none.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        bias: bool = False,
        activation: str | None = None,
        axes: tuple[str] = ("heads",),
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        kernel = jax.random.normal(rngs.params(), (width, channels)) * width**-0.5
        self.kernel = nnx.Param(kernel, axes=("conv", *axes), decay=True)
        self.bias = nnx.Param(jnp.zeros(channels), axes=axes) if bias else None

    def __call__(
        self, x_BTD: jax.Array, segment_ids_BT: jax.Array, state: causal_conv.ConvState | None
    ) -> tuple[jax.Array, causal_conv.ConvState]:
        """(convolved, state after the last token), continuing from `state`, or from nothing if None."""
        return ops.causal_conv(
            x_BTD,
            self.kernel[...],
            None if self.bias is None else self.bias[...],
            segment_ids=segment_ids_BT,
            initial_state=state,
            return_state=True,
            activation=self.activation,
        )

    def init_state(self, batch: int, dtype: jnp.dtype) -> causal_conv.ConvState:
        """The state before any token."""
        return causal_conv.empty_state(batch, *self.kernel[...].shape, dtype)


class TokenShift(nnx.Module):
    """The token before each token of a document, 0 before its first one."""

    def __init__(self, channels: int):
        self.channels = channels

    def __call__(
        self, x_BTD: jax.Array, segment_ids_BT: jax.Array, state: causal_conv.ConvState | None
    ) -> tuple[jax.Array, causal_conv.ConvState]:
        """(x_{t-1}, state after the last token), continuing from `state`, or from nothing if None."""
        taps_WD = jnp.asarray([[0.0], [1.0]], x_BTD.dtype) * jnp.ones(
            (1, self.channels), x_BTD.dtype
        )
        return ops.causal_conv(
            x_BTD,
            taps_WD,
            segment_ids=segment_ids_BT,
            initial_state=state,
            return_state=True,
        )

    def init_state(self, batch: int, dtype: jnp.dtype) -> causal_conv.ConvState:
        """The state before any token."""
        return causal_conv.empty_state(batch, 2, self.channels, dtype)


class GroupRMSNorm(nnx.Module):
    """RMSNorm of each of `groups` equal parts of the last axis; one learned scale a channel."""

    def __init__(self, size: int, eps: float, groups: int, axes: tuple[str] = ("norm",)):
        self.scale = nnx.Param(jnp.ones(size), axes=axes)
        self.eps = eps
        self.groups = groups

    def __call__(self, x: jax.Array) -> jax.Array:
        parts = at_least_float32(x).reshape(*x.shape[:-1], self.groups, -1)
        mean_square = jnp.mean(jnp.square(parts), axis=-1, keepdims=True)
        normed = (parts * jax.lax.rsqrt(mean_square + self.eps)).reshape(x.shape)
        return (normed * self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


class GatedRMSNorm(nnx.Module):
    """rmsnorm(y) * act(gate) over the last axis, or with `norm_last` rmsnorm(y * act(gate)).

    The mean square is taken over each of `groups` equal parts of the axis.
    """

    def __init__(
        self,
        size: int,
        eps: float,
        *,
        act=jax.nn.silu,
        norm_last: bool = False,
        groups: int = 1,
        axes: tuple[str] = ("norm",),
    ):
        self.norm = GroupRMSNorm(size, eps, groups, axes)
        self.act = act
        self.norm_last = norm_last

    def __call__(self, y: jax.Array, gate: jax.Array) -> jax.Array:
        gate = self.act(at_least_float32(gate)).astype(y.dtype)
        return self.norm(y * gate) if self.norm_last else self.norm(y) * gate


def l2_normalize(x: jax.Array, eps: float = L2_EPS) -> jax.Array:
    """x / sqrt(sum x^2 + eps) over the last axis, statistics in float32."""
    return unit(x, eps)


def initial_dt_bias(
    key: jax.Array,
    shape: tuple[int, ...],
    low: float = 1e-3,
    high: float = 0.1,
    floor: float = 1e-4,
) -> jax.Array:
    """b with softplus(b) log-uniform in [low, high] (Mamba-2, arXiv 2405.21060's code)."""
    log_dt = jax.random.uniform(key, shape, minval=jnp.log(low), maxval=jnp.log(high))
    dt = jnp.maximum(jnp.exp(log_dt), floor)
    return dt + jnp.log(-jnp.expm1(-dt))
