"""Per-layer inputs: each layer adds a small gated vector of the token, made for it alone (Gemma 3n, Gemma 4).

A second embedding has a row of `depth` vectors for each token, one a layer. To each is added a
linear map of what the first embedding gives, normed. A layer multiplies its vector by a gate that
it computes from the residual stream, maps the product to the width of the stream, norms it and adds
it after its feed-forward.
"""

import functools
from typing import Annotated

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.feedforward.dense import ACTIVATIONS, ActivationName
from hybridlm.models.layers import Linear
from hybridlm.models.norms import NORMS
from hybridlm.settings.bounds import AtLeast, PositiveInt, settings


@settings
class PerLayerConfig:
    """A vector for each token and layer, besides the embedding.

    Attributes:
      size: of a vector; 256 in Gemma 4.
      rows: tokens that the second embedding has vectors for; None is the vocabulary's size.
      activation: of the gate.
    """

    size: PositiveInt
    rows: Annotated[int, AtLeast(1, none="for the vocabulary's size")] | None = None
    activation: ActivationName = "gelu_tanh"

    def outer_parameters(self, width: int, depth: int, vocab_size: int) -> int:
        """Parameters outside the layers, without the norm: the embedding and the linear map."""
        return ((self.rows or vocab_size) + width) * depth * self.size

    def outer_flops(self, width: int, depth: int) -> float:
        """FLOPs of a token outside the layers."""
        return 2.0 * width * depth * self.size

    def layer_flops(self, width: int) -> float:
        """FLOPs of a token in one layer."""
        return 4.0 * width * self.size


class PerLayerInputs(nnx.Module):
    """The vectors of all layers; the outer part of `PerLayerConfig`."""

    def __init__(
        self,
        config: PerLayerConfig,
        width: int,
        depth: int,
        vocab_size: int,
        *,
        norm: str,
        norm_eps: float,
        init_std: float,
        rngs: nnx.Rngs,
    ):
        shape = (config.rows or vocab_size, depth * config.size)
        embedding = jax.random.normal(rngs.params(), shape) * init_std
        self.embedding = nnx.Param(embedding, axes=("vocab", "embed"))
        self.projection = Linear(width, shape[1], ("embed", "mlp"), rngs=rngs, muon=False)
        self.norm = NORMS[norm](config.size, norm_eps)
        self.depth, self.size = depth, config.size

    def __call__(self, tokens_BT: jax.Array, x_BTD: jax.Array) -> list[jax.Array]:
        """The vectors (B, T, size) of each layer, bottom to top.

        Args:
          tokens_BT: int32.
          x_BTD: what the embedding gives for these tokens, with its factor.
        """
        shape = (*tokens_BT.shape, self.depth, self.size)
        dtype = x_BTD.dtype
        own = self.embedding[...].astype(dtype)[tokens_BT].reshape(shape)
        mapped = self.norm((self.projection(x_BTD) * x_BTD.shape[-1] ** -0.5).reshape(shape))
        both = (mapped + own * jnp.asarray(self.size**0.5, dtype)) * jnp.asarray(0.5**0.5, dtype)
        return [both[:, :, i] for i in range(self.depth)]


class LayerInput(nnx.Module):
    """What one layer adds of its vector; the inner part of `PerLayerConfig`."""

    def __init__(
        self,
        config: PerLayerConfig,
        width: int,
        *,
        norm: str,
        norm_eps: float,
        out_scale: float,
        rngs: nnx.Rngs,
    ):
        self.gate = Linear(width, config.size, ("embed", "mlp"), rngs=rngs)
        self.out = Linear(config.size, width, ("mlp", "embed"), rngs=rngs, scale=out_scale)
        self.norm = NORMS[norm](width, norm_eps)
        self.act = functools.partial(_activate, config.activation)

    def __call__(self, x_BTD: jax.Array, vector_BTP: jax.Array) -> jax.Array:
        """The residual stream with the layer's vector added."""
        return x_BTD + self.norm(self.out(self.act(self.gate(x_BTD)) * vector_BTP))


def _activate(name: str, x: jax.Array) -> jax.Array:
    return ACTIVATIONS[name](x)
