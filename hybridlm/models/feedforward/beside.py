"""A dense feed-forward beside a mixture of experts, each with norms of its own (Gemma 4)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from flax import nnx

from hybridlm.models.feedforward.base import FeedForward, FeedForwardConfig
from hybridlm.models.feedforward.dense import GatedConfig, GeGLUConfig, SwiGLUConfig
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.models.mixers.base import LayerSpec, SequenceContext
from hybridlm.models.norms import RMSNorm
from hybridlm.settings.bounds import settings
from hybridlm.settings.kinds import read_kind

_DENSE = {c.kind_name: c for c in (GatedConfig, GeGLUConfig, SwiGLUConfig)}
_MOE = {MoEConfig.kind_name: MoEConfig}


@settings
class BesideConfig(FeedForwardConfig):
    """A dense feed-forward and a mixture of experts that read the same token, and are added.

    Both norm the residual stream, which the block gives them as it is, before and after they compute.
    The router reads the stream itself. All norms are RMSNorm. Goes with block prenorm, sandwich or
    scaled_sandwich, whose norm before the feed-forward is left out.

    Attributes:
      dense: settings of the dense feed-forward, of a gated kind ("swiglu" where none is given).
      moe: settings of the mixture, of kind "moe".
    """

    kind_name: ClassVar[str] = "dense_beside_moe"
    other_names: ClassVar[Mapping[str, str]] = {"dense_and_moe": "", "gemma4_moe": ""}
    equation: ClassVar[str] = "y = norm f(norm x) + norm sum_{e in top-k} w_e(x) f_e(norm x)"
    source: ClassVar[str] = "Gemma 4's Gemma4TextDecoderLayer in transformers 5.23"
    norms_input: ClassVar[bool] = True

    dense: Any
    moe: Any

    def __post_init__(self):
        for name, kinds, default in (("dense", _DENSE, "swiglu"), ("moe", _MOE, "moe")):
            path = f"{self.kind_name}.{name}"
            read = read_kind(getattr(self, name), path, kinds, "feed-forward", default=default)
            object.__setattr__(self, name, read)

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "Beside":
        return Beside(self, spec, rngs=rngs)

    def parameters(self, width: int) -> int:
        return 4 * width + self.dense.parameters(width) + self.moe.parameters(width)

    def active_parameters(self, width: int) -> int:
        return 4 * width + self.dense.parameters(width) + self.moe.active_parameters(width)

    def flops_per_token(self, width: int) -> float:
        return self.dense.flops_per_token(width) + self.moe.flops_per_token(width)

    def kept_per_token(self, width: int) -> int:
        return 4 * width + self.dense.kept_per_token(width) + self.moe.kept_per_token(width)

    @property
    def has_loss(self) -> bool:
        return self.moe.has_loss

    @property
    def mechanism(self) -> str:
        return f"dense beside {self.moe.mechanism}"


class Beside(FeedForward):
    """The module of `BesideConfig`."""

    def __init__(self, config: BesideConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        width, eps = spec.width, spec.norm_eps
        self.dense_norm, self.dense_post_norm = RMSNorm(width, eps), RMSNorm(width, eps)
        self.moe_norm, self.moe_post_norm = RMSNorm(width, eps), RMSNorm(width, eps)
        self.dense = config.dense.build(spec, rngs=rngs)
        self.moe = config.moe.build(spec, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self.with_loss(x_BTD, context)[0]

    def with_loss(self, x_BTD: jax.Array, context: SequenceContext) -> tuple[jax.Array, jax.Array]:
        dense_BTD = self.dense(self.dense_norm(x_BTD), context.within("dense"))
        moe_BTD, loss = self.moe.routed(self.moe_norm(x_BTD), x_BTD, context.within("moe"))
        y_BTD = self.dense_post_norm(dense_BTD) + self.moe_post_norm(moe_BTD)
        return y_BTD, loss
