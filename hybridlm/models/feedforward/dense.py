"""Dense feed-forwards: gated (three matrices) and plain (two)."""

from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.feedforward.base import FeedForward, FeedForwardConfig
from hybridlm.models.layers import Linear, scale
from hybridlm.models.mixers.base import LayerSpec, SequenceContext
from hybridlm.settings.bounds import Above, PositiveFloat, PositiveInt, settings

ActivationName = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),  # arXiv 2109.08668
}


@settings
class DenseConfig(FeedForwardConfig):
    """Base of the dense kinds: `matrices` of width x hidden, an activation, biases or none."""

    hidden: PositiveInt  # declared first: subclasses make the next two settings, in this order

    activation: ClassVar[str]
    bias: ClassVar[bool] = False
    gate_multiplier: ClassVar[float] = 1.0
    out_multiplier: ClassVar[float] = 1.0
    clamp: ClassVar[float | None] = None
    matrices: ClassVar[int]

    def parameters(self, width: int) -> int:
        biases = (self.matrices - 1) * self.hidden + width if self.bias else 0
        return self.matrices * width * self.hidden + biases

    def flops_per_token(self, width: int) -> float:
        return 2 * self.matrices * width * self.hidden

    def kept_per_token(self, width: int) -> int:
        return self.matrices * self.hidden


class Gated(FeedForward):
    """m_out down(act(m_gate gate x) * up x), where the factors m are constants, usually 1."""

    def __init__(self, config: DenseConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        width, hidden, bias = spec.width, config.hidden, config.bias
        self.gate = Linear(width, hidden, ("embed", "mlp"), rngs=rngs, bias=bias)
        self.up = Linear(width, hidden, ("embed", "mlp"), rngs=rngs, bias=bias)
        self.down = Linear(
            hidden, width, ("mlp", "embed"), rngs=rngs, scale=spec.out_scale, bias=bias
        )
        self.activation = config.activation
        self.scale_gate = scale(config.gate_multiplier)
        self.scale_out = scale(config.out_multiplier)
        self.clamp = config.clamp

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        gate_BTF = context.hook("hook_pre", self.scale_gate(self.gate(x_BTD)))
        up_BTF = context.hook("hook_pre_linear", self.up(x_BTD))
        if self.clamp is not None:
            gate_BTF = jnp.minimum(gate_BTF, self.clamp)
            up_BTF = jnp.clip(up_BTF, -self.clamp, self.clamp)
        hidden_BTF = ACTIVATIONS[self.activation](gate_BTF) * up_BTF
        return self.scale_out(self.down(context.hook("hook_post", hidden_BTF)))


class Plain(FeedForward):
    """down(act(up x))."""

    def __init__(self, config: DenseConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        width, hidden, bias = spec.width, config.hidden, config.bias
        self.up = Linear(width, hidden, ("embed", "mlp"), rngs=rngs, bias=bias)
        self.down = Linear(
            hidden, width, ("mlp", "embed"), rngs=rngs, scale=spec.out_scale, bias=bias
        )
        self.activation = config.activation

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        hidden_BTF = ACTIVATIONS[self.activation](context.hook("hook_pre", self.up(x_BTD)))
        return self.down(context.hook("hook_post", hidden_BTF))


@settings
class SwiGLUConfig(DenseConfig):
    """A gated feed-forward with silu and no biases: `down(silu(gate x) * up x)`.

    Attributes:
      hidden: size of the hidden layer.
    """

    kind_name: ClassVar[str] = "swiglu"
    other_names: ClassVar[Mapping[str, str]] = {
        "swish_glu": "",
        "silu_glu": "",
        "llama": "",
    }
    equation: ClassVar[str] = "y = W_down (silu(W_gate x) * W_up x)"
    source: ClassVar[str] = "arXiv 2002.05202"
    matrices: ClassVar[int] = 3
    activation: ClassVar[str] = "silu"

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> Gated:
        return Gated(self, spec, rngs=rngs)


@settings
class GeGLUConfig(SwiGLUConfig):
    """A gated feed-forward with GELU (its tanh form) and no biases.

    Attributes:
      hidden: size of the hidden layer.
    """

    kind_name: ClassVar[str] = "geglu"
    other_names: ClassVar[Mapping[str, str]] = {
        "gelu_glu": "",
        "gated_gelu": "",
    }
    equation: ClassVar[str] = "y = W_down (gelu(W_gate x) * W_up x)"
    activation: ClassVar[str] = "gelu_tanh"


@settings
class GatedConfig(DenseConfig):
    """A gated feed-forward: `down(act(gate x) * up x)`.

    Attributes:
      hidden: size of the hidden layer.
      activation: activation of the gate.
      bias: True adds biases to its three linear maps.
      gate_multiplier: factor on the gate before its activation (Falcon-H1).
      out_multiplier: factor on the output (Falcon-H1).
      clamp: limit of the gate (from above, before its activation) and of its other factor (on both
        sides); 10 in GLM-5.3-Flash.
    """

    kind_name: ClassVar[str] = "gated"
    other_names: ClassVar[Mapping[str, str]] = {
        "glu": "activation=...",
        "gated_mlp": "activation=...",
        "reglu": "activation='relu'",
    }
    equation: ClassVar[str] = "y = W_down (act(W_gate x) * W_up x)"
    source: ClassVar[str] = "arXiv 2002.05202"
    matrices: ClassVar[int] = 3

    activation: ActivationName = "silu"
    bias: bool = False
    gate_multiplier: PositiveFloat = 1.0
    out_multiplier: PositiveFloat = 1.0
    clamp: Annotated[float, Above(0, none="for no limit")] | None = None

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> Gated:
        return Gated(self, spec, rngs=rngs)


@settings
class PlainConfig(DenseConfig):
    """A feed-forward without a gate: `down(act(up x))`.

    Attributes:
      hidden: size of the hidden layer.
      activation: "relu2" is the square of ReLU (Nemotron-H), "gelu" the exact form (GPT-2).
      bias: True adds biases to its two linear maps.
    """

    kind_name: ClassVar[str] = "plain"
    other_names: ClassVar[Mapping[str, str]] = {
        "mlp": "",
        "ffn": "",
        "dense": "",
        "feedforward": "",
        "gelu": "activation='gelu'",
        "relu": "activation='relu'",
        "relu2": "activation='relu2'",
        "squared_relu": "activation='relu2'",
    }
    equation: ClassVar[str] = "y = W_down act(W_up x)"
    source: ClassVar[str] = "arXiv 1706.03762 sec. 3.3; relu2 arXiv 2109.08668"
    matrices: ClassVar[int] = 2

    activation: ActivationName = "gelu"
    bias: bool = False

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> Plain:
        return Plain(self, spec, rngs=rngs)
