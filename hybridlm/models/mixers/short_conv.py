"""LFM2's short convolution: two gates around a depthwise convolution of a few taps."""

from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.layers import Linear
from hybridlm.models.mixers.base import LayerSpec, Mixer, MixerConfig, SequenceContext
from hybridlm.models.mixers.parts import ConvWidth, ShortConv
from hybridlm.settings.bounds import settings
from kernels_pallas.causal_conv import ConvState


@settings
class ShortConvConfig(MixerConfig):
    """Double-gated short convolution, linear but for its gates: it sees `conv_width` tokens.

    Attributes:
      conv_width: taps of the convolution, the current token's included.
      bias: whether the projections and the convolution have biases.
    """

    kind_name: ClassVar[str] = "short_conv"
    other_names: ClassVar[Mapping[str, str]] = {
        "lfm2": "",
        "conv": "",
        "short_convolution": "",
        "gated_short_convolution": "",
    }
    equation: ClassVar[str] = "y_t = C_t * sum_{i < W} w_i (B * x)_{t-i}"
    source: ClassVar[str] = "LFM2, arXiv 2511.23404"
    operations: ClassVar[tuple[str, ...]] = ("causal_conv",)

    conv_width: ConvWidth = 3
    bias: bool = False

    def head_counts(self, width: int) -> dict[str, int]:
        return {"channels (model.width)": width}  # every channel is a head of its own

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "GatedShortConv":
        return GatedShortConv(self, spec, rngs=rngs)

    def flops_per_token(self, width: int, seq_len: int) -> float:
        del seq_len  # the same at every position
        return 2 * 4 * width * width + 2 * width * self.conv_width

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        del seq_len
        return width * (self.conv_width - 1) * itemsize

    @property
    def mechanism(self) -> str:
        return f"gated short convolution, {self.conv_width} taps"


class GatedShortConv(Mixer):
    """out(C * conv(B * x)): the mixer of `ShortConvConfig`; its state is the convolution's."""

    def __init__(self, config: ShortConvConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        width = spec.width
        self.config = config
        options = dict(rngs=rngs, bias=config.bias)
        self.input_gate = Linear(width, width, ("embed", "heads"), **options)
        self.output_gate = Linear(width, width, ("embed", "heads"), **options)
        self.value = Linear(width, width, ("embed", "heads"), **options)
        self.conv = ShortConv(width, config.conv_width, **options)
        self.out = Linear(width, width, ("heads", "embed"), scale=spec.out_scale, **options)

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self.extend(x_BTD, context, None)[0]

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> ConvState:
        """The state before any token; its size does not depend on `max_len`."""
        del max_len
        return self.conv.init_state(batch, dtype)

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: ConvState | None
    ) -> tuple[jax.Array, ConvState]:
        gate_BTD = context.hook("hook_input_gate", self.input_gate(x_BTD))
        gated_BTD = gate_BTD * context.hook("hook_v", self.value(x_BTD))
        u_BTD, state = self.conv(gated_BTD, context.segment_ids_BT, state)
        gate_BTD = context.hook("hook_output_gate", self.output_gate(x_BTD))
        return self.out(gate_BTD * context.hook("hook_z", u_BTD)), state
