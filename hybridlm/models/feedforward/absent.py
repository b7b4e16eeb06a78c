"""The feed-forward of a layer without one: "none" in a pattern, or `model.mlp = None`."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.feedforward.base import FeedForward, FeedForwardConfig
from hybridlm.models.mixers.base import LayerSpec, SequenceContext
from hybridlm.settings.bounds import settings


@settings
class NoFeedForwardConfig(FeedForwardConfig):
    """No feed-forward: no parameters, no FLOPs."""

    kind_name: ClassVar[str] = "none"
    equation: ClassVar[str] = "y = 0"
    source: ClassVar[str] = ""

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "NoFeedForward":
        del spec, rngs
        return NoFeedForward()

    def parameters(self, width: int) -> int:
        return 0

    def flops_per_token(self, width: int) -> float:
        return 0.0

    def kept_per_token(self, width: int) -> int:
        return 0


class NoFeedForward(FeedForward):
    """Adds nothing to the residual stream."""

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return jnp.zeros_like(x_BTD)
