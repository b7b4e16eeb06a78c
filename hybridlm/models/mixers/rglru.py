"""RG-LRU with its temporal convolution: Griffin's recurrent block (arXiv 2402.19427, sec. 2.3-2.4)."""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.layers import Linear
from hybridlm.models.mixers.base import LayerSpec, Mixer, MixerConfig, SequenceContext
from hybridlm.models.mixers.parts import ConvWidth, ShortConv
from hybridlm.models.norms import at_least_float32
from hybridlm.parallel import ops
from hybridlm.settings.bounds import PositiveInt, settings
from hybridlm.settings.reader import require
from kernels_pallas import linear_recurrence
from kernels_pallas.causal_conv import ConvState

DECAY_POWER = 8.0  # c in a_t = a^(c r_t), the paper's constant


@settings
class RGLRUConfig(MixerConfig):
    """Settings of the RG-LRU mixer.

    Attributes:
      recurrent_width: channels of the recurrence; None is the model's width.
      heads: blocks of the block-diagonal gate projections.
      conv_width: taps of the temporal convolution.
      bias: whether the three projections have biases (RecurrentGemma).
    """

    kind_name: ClassVar[str] = "rglru"
    other_names: ClassVar[Mapping[str, str]] = {
        "griffin": "",
        "hawk": "",
        "recurrentgemma": "",
        "real_gated_lru": "",
    }
    head_settings: ClassVar[tuple[str, ...]] = ("heads",)
    equation: ClassVar[str] = "h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t x_t), a_t = a^(8 r_t)"
    source: ClassVar[str] = "arXiv 2402.19427 sec. 2.4"
    operations: ClassVar[tuple[str, ...]] = ("causal_conv", "linear_recurrence")

    recurrent_width: PositiveInt | None = None
    heads: PositiveInt = 4
    conv_width: ConvWidth = 4
    bias: bool = False

    def __post_init__(self):
        if self.recurrent_width is not None:
            self.check_width(self.recurrent_width)

    def check_width(self, width: int) -> None:
        width = self.channels(width)
        require(
            width % self.heads == 0,
            "heads",
            f"is {self.heads} and does not divide the recurrent width {width}",
        )

    def channels(self, width: int) -> int:
        return self.recurrent_width or width

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "RGLRU":
        return RGLRU(self, spec, rngs=rngs)

    def flops_per_token(self, width: int, seq_len: int) -> float:
        del seq_len  # a recurrence costs the same at every position
        channels = self.channels(width)
        projections = 2 * 3 * width * channels
        gates = 2 * 2 * channels * channels // self.heads
        return projections + gates + 2 * channels * self.conv_width + 2 * channels

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        del seq_len
        return self.channels(width) * (4 + (self.conv_width - 1) * itemsize)

    @property
    def mechanism(self) -> str:
        return f"RG-LRU, conv {self.conv_width}"


class RGLRUState(NamedTuple):
    """The convolution's last inputs and the recurrence's h (float32)."""

    conv: ConvState
    recurrence: linear_recurrence.RecurrenceState


class RGLRU(Mixer):
    """out(gelu(branch x) * lru(conv(input x))): the mixer of `RGLRUConfig`."""

    def __init__(self, config: RGLRUConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        channels = config.channels(spec.width)
        self.config = config
        self.channels = channels
        options = dict(rngs=rngs, bias=config.bias)
        self.branch = Linear(spec.width, channels, ("embed", "heads"), **options)
        self.input = Linear(spec.width, channels, ("embed", "heads"), **options)
        self.out = Linear(channels, spec.width, ("heads", "embed"), scale=spec.out_scale, **options)
        self.conv = ShortConv(channels, config.conv_width, bias=True, rngs=rngs)
        self.recurrence_gate = BlockDiagonal(channels, config.heads, rngs=rngs)
        self.input_gate = BlockDiagonal(channels, config.heads, rngs=rngs)
        self.decay = nnx.Param(_initial_decay(rngs.params(), channels), axes=("heads",))

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self.extend(x_BTD, context, None)[0]

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> RGLRUState:
        """The state before any token; its size does not depend on `max_len`."""
        del max_len
        recurrence_dtype = jnp.promote_types(dtype, jnp.float32)
        return RGLRUState(
            self.conv.init_state(batch, dtype),
            linear_recurrence.empty_state(batch, self.channels, recurrence_dtype),
        )

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: RGLRUState | None
    ) -> tuple[jax.Array, RGLRUState]:
        ids_BT = context.segment_ids_BT
        conv_state, recurrence_state = state or (None, None)
        u_BTI = context.hook("hook_v_pre_conv", self.input(x_BTD))
        u_BTI, conv_state = self.conv(u_BTI, ids_BT, conv_state)
        log_a_BTI, gated_BTI = self._gate(context.hook("hook_conv_out", u_BTI), context)
        h_BTI, recurrence_state = ops.gated_recurrence(
            context.hook("hook_log_decay", log_a_BTI),
            gated_BTI,
            segment_ids=ids_BT,
            initial_state=recurrence_state,
            return_state=True,
        )
        h_BTI = context.hook("hook_recurrence_out", h_BTI)
        branch_BTI = context.hook("hook_gate_input", self.branch(x_BTD))
        branch_BTI = jax.nn.gelu(branch_BTI, approximate=True)
        y_BTD = self.out(branch_BTI * h_BTI.astype(x_BTD.dtype))
        return y_BTD, RGLRUState(conv_state, recurrence_state)

    def _gate(self, u_BTI: jax.Array, context: SequenceContext) -> tuple[jax.Array, jax.Array]:
        """Logarithm of the decay and gated input i_t x_t, float32; eq. 1-3."""
        r_BTI = jax.nn.sigmoid(at_least_float32(self.recurrence_gate(u_BTI)))
        i_BTI = jax.nn.sigmoid(at_least_float32(self.input_gate(u_BTI)))
        log_a_BTI = -DECAY_POWER * r_BTI * jax.nn.softplus(self.decay[...])[None, None, :]
        i_BTI = context.hook("hook_input_gate", i_BTI)
        return log_a_BTI, i_BTI * context.hook("hook_v", at_least_float32(u_BTI))


class BlockDiagonal(nnx.Module):
    """x -> x W + b with W block-diagonal: channels mix within their head only."""

    def __init__(self, channels: int, heads: int, *, rngs: nnx.Rngs):
        size = channels // heads
        kernel = jax.random.normal(rngs.params(), (heads, size, size)) * size**-0.5
        self.kernel = nnx.Param(
            kernel, axes=("heads", "block_in", "block_out"), decay=True, muon=True
        )
        self.bias = nnx.Param(jnp.zeros((heads, size)), axes=("heads", "block_out"))

    def __call__(self, x_BTI: jax.Array) -> jax.Array:
        heads, size = self.bias[...].shape
        x_BTHK = x_BTI.reshape(*x_BTI.shape[:2], heads, size)
        y_BTHK = jnp.einsum("bthi,hij->bthj", x_BTHK, self.kernel[...].astype(x_BTI.dtype))
        return (y_BTHK + self.bias[...].astype(x_BTI.dtype)[None, None]).reshape(x_BTI.shape)


def _initial_decay(key: jax.Array, channels: int, low: float = 0.9, high: float = 0.999):
    """Lambda with a = exp(-softplus(Lambda)) such that a^2 is uniform in [low^2, high^2]."""
    squared = jax.random.uniform(key, (channels,), minval=low**2, maxval=high**2)
    softplus = -0.5 * jnp.log(squared)
    return jnp.log(jnp.expm1(softplus))
