"""The mixer of a layer without one: "none" in a pattern."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.mixers.base import LayerSpec, Mixer, MixerConfig, SequenceContext
from hybridlm.settings.bounds import settings


@settings
class NoMixerConfig(MixerConfig):
    """A layer's missing mixer: no parameters, no FLOPs, no state."""

    kind_name: ClassVar[str] = "none"
    equation: ClassVar[str] = "y = 0"
    source: ClassVar[str] = ""

    @property
    def mechanism(self) -> str:
        return "no mixer"

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "NoMixer":
        del spec, rngs
        return NoMixer()

    def flops_per_token(self, width: int, seq_len: int) -> float:
        return 0.0

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        return 0


class NoMixer(Mixer):
    """Adds nothing to the residual stream."""

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return jnp.zeros_like(x_BTD)

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> tuple[()]:
        return ()

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: Any
    ) -> tuple[jax.Array, Any]:
        return self(x_BTD, context), state
