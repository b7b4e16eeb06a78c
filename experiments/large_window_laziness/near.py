"""The shared first layer of arms whose schedules go below its window."""

import jax
from flax import nnx

from hybridlm.models.mixers import LayerSpec, SequenceContext
from hybridlm.models.mixers.attention import Attention, AttentionConfig
from hybridlm.models.mixers.rows import AttentionRows
from hybridlm.settings.bounds import settings


@settings
class NearConfig(AttentionConfig):
    """Attention with its own window alone: a step's window does not narrow it."""

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "Near":
        return Near(self, spec, rngs=rngs)


class Near(Attention):
    """The mixer of `NearConfig`; its parameters are those of `Attention`."""

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return super().__call__(x_BTD, context._replace(window=None))

    def attention_rows(
        self, x_BTD: jax.Array, context: SequenceContext, rows_BQ: jax.Array
    ) -> AttentionRows:
        return super().attention_rows(x_BTD, context._replace(window=None), rows_BQ)
