"""The three blocks: how a mixer, an MLP and their norms meet the residual stream."""

from typing import Any

import jax
from flax import nnx

from hybridlm.config.schema import MLPConfig, ModelConfig
from hybridlm.models.layers import GatedMLP, RMSNorm
from hybridlm.models.mixers import LayerSpec, MixerConfig, SequenceContext


class PreNormBlock(nnx.Module):
    """x + mixer(norm x), then x + mlp(norm x) (arXiv 2002.04745)."""

    def __init__(self, mixer: MixerConfig, mlp: MLPConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        self.mixer_norm = RMSNorm(spec.width, spec.norm_eps)
        self.mixer = mixer.build(spec, rngs=rngs)
        self.mlp_norm = RMSNorm(spec.width, spec.norm_eps)
        self.mlp = GatedMLP(spec.width, mlp.hidden, mlp.kind, spec.out_scale, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        x_BTD = x_BTD + self.mixer(self.mixer_norm(x_BTD), context)
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: Any
    ) -> tuple[jax.Array, Any]:
        y_BTD, state = self.mixer.extend(self.mixer_norm(x_BTD), context, state)
        x_BTD = x_BTD + y_BTD
        return x_BTD + self.mlp(self.mlp_norm(x_BTD)), state


class SandwichBlock(PreNormBlock):
    """Norms before and after each part: x + norm(mixer(norm x)) (Gemma 2, arXiv 2408.00118)."""

    def __init__(self, mixer: MixerConfig, mlp: MLPConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        super().__init__(mixer, mlp, spec, rngs=rngs)
        self.mixer_post_norm = RMSNorm(spec.width, spec.norm_eps)
        self.mlp_post_norm = RMSNorm(spec.width, spec.norm_eps)

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        x_BTD = x_BTD + self.mixer_post_norm(self.mixer(self.mixer_norm(x_BTD), context))
        return x_BTD + self.mlp_post_norm(self.mlp(self.mlp_norm(x_BTD)))

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: Any
    ) -> tuple[jax.Array, Any]:
        y_BTD, state = self.mixer.extend(self.mixer_norm(x_BTD), context, state)
        x_BTD = x_BTD + self.mixer_post_norm(y_BTD)
        return x_BTD + self.mlp_post_norm(self.mlp(self.mlp_norm(x_BTD))), state


class ParallelBlock(nnx.Module):
    """x + mixer(norm x) + mlp(norm x), one norm for both (GPT-J, PaLM)."""

    def __init__(self, mixer: MixerConfig, mlp: MLPConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(spec.width, spec.norm_eps)
        self.mixer = mixer.build(spec, rngs=rngs)
        self.mlp = GatedMLP(spec.width, mlp.hidden, mlp.kind, spec.out_scale, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        normed_BTD = self.norm(x_BTD)
        return x_BTD + self.mixer(normed_BTD, context) + self.mlp(normed_BTD)

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: Any
    ) -> tuple[jax.Array, Any]:
        normed_BTD = self.norm(x_BTD)
        y_BTD, state = self.mixer.extend(normed_BTD, context, state)
        return x_BTD + y_BTD + self.mlp(normed_BTD), state


BLOCKS = {"prenorm": PreNormBlock, "sandwich": SandwichBlock, "parallel": ParallelBlock}


def build_block(model: ModelConfig, mixer_name: str, *, rngs: nnx.Rngs) -> nnx.Module:
    """The block of `model` around its mixer `mixer_name`."""
    spec = LayerSpec(model.width, model.norm_eps, (2 * model.depth) ** -0.5)
    return BLOCKS[model.block](model.mixers[mixer_name], model.mlp, spec, rngs=rngs)
