"""Kimi Delta Attention (Kimi Linear, arXiv 2510.26692, sec. 3 and 4)."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.mixers.base import LayerSpec
from hybridlm.models.mixers.delta import (
    Delta,
    DeltaConfig,
    GatedHeadNorm,
    LowRank,
    Sizes,
    initial_a_log,
)
from hybridlm.models.mixers.parts import ConvWidth, initial_dt_bias
from hybridlm.models.norms import at_least_float32
from hybridlm.settings.bounds import Below, PositiveInt, settings


@settings
class KDAConfig(DeltaConfig):
    """Kimi Delta Attention: the delta rule with a decay for each channel of a key.

    Attributes:
      heads: heads, of keys and values alike.
      head_dim: size of query, key and value heads and rank of both gates' projections; None is
        width // heads.
      conv_width: taps of the convolutions on q, k and v.
      negative_eigenvalues: beta in (0, 2) instead of (0, 1), so that a key's content may flip
        its sign (arXiv 2411.12537).
      lower_bound: lower bound of the log decay per token, such as -5: the log decay is then
        lower_bound * sigmoid(exp(A_log) (W2 W1 x + dt_bias)). None is the paper's
        -exp(A_log) softplus(W2 W1 x + dt_bias).
    """

    kind_name: ClassVar[str] = "kda"
    other_names: ClassVar[Mapping[str, str]] = {
        "kimi_delta_attention": "",
        "kimi_delta": "",
        "kimi_linear": "",
        "kimi_linear_attention": "",
    }
    head_settings: ClassVar[tuple[str, ...]] = ("heads",)
    equation: ClassVar[str] = (
        "S' = Diag(a_t) S_{t-1}, S_t = S' + b_t k_t (v_t - S'^T k_t)^T, o_t = S_t^T q_t"
    )
    source: ClassVar[str] = "arXiv 2510.26692 sec. 3.1, 4.1"
    operations: ClassVar[tuple[str, ...]] = ("causal_conv", "delta_rule")
    name: ClassVar[str] = "Kimi Delta Attention"

    heads: PositiveInt
    head_dim: PositiveInt | None = None
    conv_width: ConvWidth = 4
    negative_eigenvalues: bool = False
    lower_bound: Annotated[float, Below(0)] | None = None

    def sizes(self, width: int) -> Sizes:
        size = self.head_dim or width // self.heads
        return Sizes(self.heads, self.heads, size, size)

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> Delta:
        sizes = self.sizes(spec.width)
        size = sizes.value_size
        gate = LowRank(spec.width, size, sizes.values, rngs=rngs)
        output = GatedHeadNorm(size, spec.norm_eps, gate, jax.nn.sigmoid)
        if self.lower_bound is None:
            decay = ChannelDecay(spec.width, sizes, rngs=rngs)
        else:
            decay = BoundedChannelDecay(spec.width, sizes, self.lower_bound, rngs=rngs)
        return Delta(self, spec, decay, output, rngs=rngs)

    def gate_flops(self, width: int) -> int:
        sizes = self.sizes(width)
        return 2 * 2 * sizes.key_size * (width + sizes.keys)


class ChannelDecay(nnx.Module):
    """log a = -exp(A_log) softplus(W2 W1 x + dt_bias), one per key channel; A_log per head.

    `rank` is W1's number of outputs, the size of a key if None.
    """

    def __init__(self, width: int, sizes: Sizes, *, rngs: nnx.Rngs, rank: int | None = None):
        self.proj = LowRank(width, rank or sizes.key_size, sizes.keys, rngs=rngs)
        self.a_log = nnx.Param(self.initial_a_log(rngs, sizes.heads), axes=("heads",))
        self.dt_bias = nnx.Param(
            initial_dt_bias(rngs.params(), (sizes.heads, sizes.key_size)), axes=("heads", "channel")
        )

    def initial_a_log(self, rngs: nnx.Rngs, heads: int) -> jax.Array:
        return initial_a_log(rngs.params(), heads, 1.0)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        dt_bias_HK = self.dt_bias[...]
        dt_BTHK = at_least_float32(self.proj(x_BTD)).reshape(*x_BTD.shape[:2], *dt_bias_HK.shape)
        a_11H1 = jnp.exp(self.a_log[...])[None, None, :, None]
        return self.log_decay(a_11H1, dt_BTHK + dt_bias_HK[None, None])

    def log_decay(self, a_11H1: jax.Array, dt_BTHK: jax.Array) -> jax.Array:
        return -a_11H1 * jax.nn.softplus(dt_BTHK)


class BoundedChannelDecay(ChannelDecay):
    """log a = bound * sigmoid(exp(A_log) (W2 W1 x + dt_bias)): never below `bound`; A starts at 1.

    A bound lets kernels factor the decay over a few tokens without overflow.
    """

    def __init__(self, width: int, sizes: Sizes, bound: float, *, rngs: nnx.Rngs):
        super().__init__(width, sizes, rngs=rngs)
        self.bound = bound

    def initial_a_log(self, rngs: nnx.Rngs, heads: int) -> jax.Array:
        return jnp.zeros(heads)

    def log_decay(self, a_11H1: jax.Array, dt_BTHK: jax.Array) -> jax.Array:
        return self.bound * jax.nn.sigmoid(a_11H1 * dt_BTHK)
