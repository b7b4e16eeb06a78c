"""RWKV-7's feed-forward, which mixes each token with the one before it (arXiv 2503.14456, sec. 4)."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.feedforward.base import FeedForward, FeedForwardConfig
from hybridlm.models.layers import Linear, orthogonal_linear
from hybridlm.models.mixers.base import LayerSpec, SequenceContext
from hybridlm.models.mixers.parts import TokenShift
from hybridlm.models.norms import along_last
from hybridlm.settings.bounds import PositiveInt, settings
from kernels_pallas.causal_conv import ConvState


@settings
class ChannelMixConfig(FeedForwardConfig):
    """A feed-forward with squared ReLU that reads a mixture of the token and the one before it.

    Attributes:
      hidden: size of the hidden layer; RWKV-7's is 4 times the model's width.
    """

    kind_name: ClassVar[str] = "channel_mix"
    other_names: ClassVar[Mapping[str, str]] = {
        "rwkv_channel_mix": "",
        "channel_mixing": "",
        "cmix": "",
        "rwkv7": "",
    }
    equation: ClassVar[str] = "y_t = W_down relu(W_up (x_t + mu * (x_{t-1} - x_t)))^2"
    source: ClassVar[str] = "arXiv 2503.14456 sec. 4"

    hidden: PositiveInt

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "ChannelMix":
        return ChannelMix(self, spec, rngs=rngs)

    def parameters(self, width: int) -> int:
        return 2 * width * self.hidden + width

    def flops_per_token(self, width: int) -> float:
        return 2 * 2 * width * self.hidden

    def kept_per_token(self, width: int) -> int:
        return 2 * self.hidden

    def state_bytes(self, width: int, itemsize: int = 2) -> int:
        return width * itemsize


class ChannelMix(FeedForward):
    """down(relu(up(x_t + mu * (x_{t-1} - x_t)))^2): the module of `ChannelMixConfig`.

    Initial values are those that the published training code writes before it trains: mu is large in low
    channels and low layers, up is orthogonal, down 0.
    """

    def __init__(self, config: ChannelMixConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        width, hidden = spec.width, config.hidden
        power = (1 - spec.index / spec.depth) ** 4
        self.shift = TokenShift(width)
        self.mix = nnx.Param(1 - (jnp.arange(width) / width) ** power, axes=("norm",))
        self.up = orthogonal_linear(width, hidden, ("embed", "mlp"), 1.0, rngs=rngs)
        self.down = Linear(hidden, width, ("mlp", "embed"), rngs=rngs)
        self.down.kernel[...] = jnp.zeros((hidden, width))

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self.extend(x_BTD, context, None)[0]

    def init_state(self, batch: int, dtype: jnp.dtype) -> ConvState:
        """The state before the first token."""
        return self.shift.init_state(batch, dtype)

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: ConvState | None
    ) -> tuple[jax.Array, ConvState]:
        before_BTD, state = self.shift(x_BTD, context.segment_ids_BT, state)
        mix = along_last(self.mix[...].astype(x_BTD.dtype), x_BTD)
        hidden_BTF = self.up(x_BTD + (before_BTD - x_BTD) * mix)
        hidden_BTF = jax.nn.relu(context.hook("hook_pre", hidden_BTF))
        return self.down(context.hook("hook_post", jnp.square(hidden_BTF))), state
