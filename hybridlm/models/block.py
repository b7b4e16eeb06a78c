"""The three blocks: how a mixer, an MLP and their norms meet the residual stream."""

import abc
from typing import Any

import jax
from flax import nnx

from hybridlm.models.layers import GatedMLP, RMSNorm
from hybridlm.models.mixers import LayerSpec, MixerConfig, SequenceContext
from hybridlm.models.settings import MLPConfig, ModelConfig


class Block(nnx.Module):
    """A mixer on a normed input, and what a kind of block makes of it: `normed` and `join`."""

    mixer: nnx.Module

    @abc.abstractmethod
    def normed(self, x_BTD: jax.Array) -> jax.Array:
        """The mixer's input."""

    @abc.abstractmethod
    def join(self, x_BTD: jax.Array, normed_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
        """The block's output from its input, the mixer's input and the mixer's output."""

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        normed_BTD = self.normed(x_BTD)
        return self.join(x_BTD, normed_BTD, self.mixer(normed_BTD, context))

    def with_loss(self, x_BTD: jax.Array, context: SequenceContext) -> tuple[jax.Array, jax.Array]:
        """As `__call__`, and the mixer's own loss."""
        normed_BTD = self.normed(x_BTD)
        y_BTD, loss = self.mixer.with_loss(normed_BTD, context)
        return self.join(x_BTD, normed_BTD, y_BTD), loss

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: Any
    ) -> tuple[jax.Array, Any]:
        """As `__call__`, continuing from the mixer's carried state."""
        normed_BTD = self.normed(x_BTD)
        y_BTD, state = self.mixer.extend(normed_BTD, context, state)
        return self.join(x_BTD, normed_BTD, y_BTD), state


class PreNormBlock(Block):
    """x + mixer(norm x), then x + mlp(norm x) (arXiv 2002.04745)."""

    def __init__(self, mixer: MixerConfig, mlp: MLPConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        self.mixer_norm = RMSNorm(spec.width, spec.norm_eps)
        self.mixer = mixer.build(spec, rngs=rngs)
        self.mlp_norm = RMSNorm(spec.width, spec.norm_eps)
        self.mlp = GatedMLP(spec.width, mlp.hidden, mlp.kind, spec.out_scale, rngs=rngs)

    def normed(self, x_BTD: jax.Array) -> jax.Array:
        return self.mixer_norm(x_BTD)

    def join(self, x_BTD: jax.Array, normed_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
        del normed_BTD
        x_BTD = x_BTD + y_BTD
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))


class SandwichBlock(PreNormBlock):
    """Norms before and after each part: x + norm(mixer(norm x)) (Gemma 2, arXiv 2408.00118)."""

    def __init__(self, mixer: MixerConfig, mlp: MLPConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        super().__init__(mixer, mlp, spec, rngs=rngs)
        self.mixer_post_norm = RMSNorm(spec.width, spec.norm_eps)
        self.mlp_post_norm = RMSNorm(spec.width, spec.norm_eps)

    def join(self, x_BTD: jax.Array, normed_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
        del normed_BTD
        x_BTD = x_BTD + self.mixer_post_norm(y_BTD)
        return x_BTD + self.mlp_post_norm(self.mlp(self.mlp_norm(x_BTD)))


class ParallelBlock(Block):
    """x + mixer(norm x) + mlp(norm x), one norm for both (GPT-J, PaLM)."""

    def __init__(self, mixer: MixerConfig, mlp: MLPConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        self.norm = RMSNorm(spec.width, spec.norm_eps)
        self.mixer = mixer.build(spec, rngs=rngs)
        self.mlp = GatedMLP(spec.width, mlp.hidden, mlp.kind, spec.out_scale, rngs=rngs)

    def normed(self, x_BTD: jax.Array) -> jax.Array:
        return self.norm(x_BTD)

    def join(self, x_BTD: jax.Array, normed_BTD: jax.Array, y_BTD: jax.Array) -> jax.Array:
        return x_BTD + y_BTD + self.mlp(normed_BTD)


BLOCKS = {"prenorm": PreNormBlock, "sandwich": SandwichBlock, "parallel": ParallelBlock}


def build_block(model: ModelConfig, mixer_name: str, *, rngs: nnx.Rngs) -> Block:
    """The block of `model` around its mixer `mixer_name`."""
    spec = LayerSpec(model.width, model.norm_eps, (2 * model.depth) ** -0.5)
    return BLOCKS[model.block](model.mixers[mixer_name], model.mlp, spec, rngs=rngs)
