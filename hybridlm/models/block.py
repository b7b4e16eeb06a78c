"""Blocks: a layer's mixer, feed-forward and norms, and how they join the residual stream."""

import abc
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models import streams
from hybridlm.models.feedforward import FeedForward, FeedForwardConfig
from hybridlm.models.feedforward.absent import NoFeedForwardConfig
from hybridlm.models.joining import BlockConfig
from hybridlm.models.layers import Identity, scale
from hybridlm.models.mixers import states
from hybridlm.models.mixers.absent import NoMixerConfig
from hybridlm.models.mixers.base import LayerSpec, Mixer, MixerConfig, SequenceContext
from hybridlm.models.norms import NORMS, along_last
from hybridlm.models.pattern import Layer
from hybridlm.models.per_layer import LayerInput
from hybridlm.models.settings import ModelConfig
from hybridlm.parallel.axes import split_over_batch

Half = Callable[[jax.Array], tuple[jax.Array, Any]]
Hook = Callable[[str, jax.Array], jax.Array]


#: Names of activations in a layer, those of TransformerLens.
NORM_1, NORM_2 = "ln1.hook_normalized", "ln2.hook_normalized"
MIXER_OUT, MIDDLE, MLP_OUT = "hook_attn_out", "hook_resid_mid", "hook_mlp_out"


def unhooked(name: str, x: jax.Array) -> jax.Array:
    """x, kept by no analysis."""
    return x


class BlockState(NamedTuple):
    """The decoding state of one layer."""

    mixer: Any
    feedforward: Any


class Block(nnx.Module):
    """A mixer and a feed-forward; subclasses define in `run` how they and the norms are joined.

    Attributes:
      mixer, mlp: the halves.
      per_layer: adds the layer's vector of each token after them; None without per-layer inputs.
    """

    mixer: Mixer
    mlp: FeedForward
    per_layer: LayerInput | None = None

    @abc.abstractmethod
    def mixer_input(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        """The mixer's input.

        Args:
          x_BTD: the residual stream before the layer.
          context: as the layer reads it; the layer may replace its `cross_layer` arrays.
        """

    @abc.abstractmethod
    def run(
        self, x_BTD: jax.Array, mix: Half, feed: Half, hook: Hook = unhooked
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        """The residual stream after both halves, and the second results of `mix` and `feed`.

        Args:
          x_BTD: the residual stream.
          mix, feed: the mixer and the feed-forward: normed input -> (output, any second result).
          hook: names activations; see `SequenceContext.hook`.
        """

    def finish(self, x_BTD: jax.Array) -> jax.Array:
        """The block's output, from the residual stream after all that it adds."""
        return x_BTD

    def join(
        self,
        x_BTD: jax.Array,
        mix: Half,
        feed: Half,
        context: SequenceContext,
        hook: Hook = unhooked,
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        """The block's output, and the second results of `mix` and `feed`; see `run`."""
        x_BTD, found = self.run(x_BTD, mix, feed, hook)
        if self.per_layer is not None:
            x_BTD = self.per_layer(x_BTD, context.vector_BTP)
        return self.finish(x_BTD), found

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        y_BTD, _ = self._run(
            x_BTD,
            context,
            lambda x, within: (self.mixer(x, within), None),
            lambda x, within: (self.mlp(x, within), None),
        )
        return y_BTD

    def with_loss(self, x_BTD: jax.Array, context: SequenceContext) -> tuple[jax.Array, jax.Array]:
        """The output of `__call__`, and the sum of the mixer's and the feed-forward's losses."""
        y_BTD, losses = self._run(x_BTD, context, self.mixer.with_loss, self.mlp.with_loss)
        return y_BTD, sum(losses)

    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> BlockState:
        """The empty state, for documents of at most `max_len` tokens."""
        return BlockState(
            self.mixer.init_state(batch, max_len, dtype), self.mlp.init_state(batch, dtype)
        )

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: BlockState
    ) -> tuple[jax.Array, BlockState]:
        """The output of `__call__` after the tokens in `state`, and the new state."""
        y_BTD, states = self._run(
            x_BTD,
            context,
            lambda x, within: self.mixer.extend(x, within, state.mixer),
            lambda x, within: self.mlp.extend(x, within, state.feedforward),
        )
        return y_BTD, BlockState(*states)

    def _run(
        self,
        x_BTD: jax.Array,
        context: SequenceContext,
        mix: Callable[[jax.Array, SequenceContext], tuple[jax.Array, Any]],
        feed: Callable[[jax.Array, SequenceContext], tuple[jax.Array, Any]],
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        """`run`, with the names of the activations that every layer has."""

        def half(scope: str, apply: Callable[..., Any]) -> Half:
            within = context.within(scope)

            def hooked(x_BTD: jax.Array) -> tuple[jax.Array, Any]:
                y_BTD, found = apply(within.hook("hook_in", x_BTD), within)
                return within.hook("hook_out", y_BTD), found

            return hooked

        def observed(x_BTD: jax.Array, within: SequenceContext) -> tuple[jax.Array, Any]:
            states.observe(self.mixer, x_BTD, within)
            return mix(x_BTD, within)

        x_BTD = context.hook("hook_resid_pre", x_BTD)
        mixing, feeding = half("attn", observed), half("mlp", feed)
        y_BTD, found = self.join(x_BTD, mixing, feeding, context, context.hook)
        return context.hook("hook_resid_post", y_BTD), found


class Parts(NamedTuple):
    """The parts of a block.

    Attributes:
      norm: makes a norm over the residual stream.
      residual_scale: factor on the output of each half.
      joins: further factors in the sums.
    """

    mixer: MixerConfig
    feedforward: FeedForwardConfig
    norm: Callable[[], nnx.Module]
    residual_scale: float
    joins: BlockConfig

    def norm_of(self, half: Any, wanted: bool = True) -> nnx.Module:
        """A norm of one of the halves, if it is wanted and there is such a half."""
        absent = isinstance(half, NoMixerConfig | NoFeedForwardConfig)
        return self.norm() if wanted and not absent else Identity()

    def sums(self) -> tuple["Sum", "Sum"]:
        """What adds the output of the mixer and that of the feed-forward to the residual stream."""
        factor, joins = self.residual_scale, self.joins
        return (
            Sum(joins.mixer_keep, joins.mixer_add * factor),
            Sum(joins.mlp_keep, joins.mlp_add * factor),
        )


class SequentialBlock(Block):
    """x + mixer(x), then x + feedforward(x), with norms before each half, after it, or both.

    Before: arXiv 2002.04745. After: OLMo 2 (arXiv 2501.00656). Both: Gemma 2 (arXiv 2408.00118).
    """

    def __init__(self, parts: Parts, spec: LayerSpec, *, before: bool, after: bool, rngs: nnx.Rngs):
        self.mixer_norm = parts.norm_of(parts.mixer, before)
        self.mixer = parts.mixer.build(spec, rngs=rngs)
        self.mlp_norm = parts.norm_of(
            parts.feedforward, before and not parts.feedforward.norms_input
        )
        self.mlp = parts.feedforward.build(spec, rngs=rngs)
        self.mixer_post_norm = parts.norm_of(parts.mixer, after)
        self.mlp_post_norm = parts.norm_of(parts.feedforward, after)
        self.add_mixer, self.add_mlp = parts.sums()

    def mixer_input(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self.mixer_norm(x_BTD)

    def run(
        self, x_BTD: jax.Array, mix: Half, feed: Half, hook: Hook = unhooked
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        y_BTD, mixed = mix(hook(NORM_1, self.mixer_norm(x_BTD)))
        y_BTD = self.mixer_post_norm(y_BTD)
        x_BTD = hook(MIDDLE, self.add_mixer(x_BTD, y_BTD, named(hook, MIXER_OUT)))
        y_BTD, fed = feed(hook(NORM_2, self.mlp_norm(x_BTD)))
        y_BTD = self.mlp_post_norm(y_BTD)
        return self.add_mlp(x_BTD, y_BTD, named(hook, MLP_OUT)), (mixed, fed)


class ScaledBlock(SequentialBlock):
    """A sequential block whose output, the residual stream, is multiplied by a scalar (Gemma 4)."""

    def __init__(self, parts: Parts, spec: LayerSpec, *, before: bool, after: bool, rngs: nnx.Rngs):
        super().__init__(parts, spec, before=before, after=after, rngs=rngs)
        self.output_scale = nnx.Param(jnp.ones(1), axes=("norm",))

    def finish(self, x_BTD: jax.Array) -> jax.Array:
        return x_BTD * along_last(self.output_scale[...], x_BTD).astype(x_BTD.dtype)


class StreamsBlock(SequentialBlock):
    """A sequential block with norms before the halves, on several residual streams.

    See `hybridlm.models.streams`: `x_BTD` is the mean of the streams, before and after.
    """

    def __init__(self, parts: Parts, spec: LayerSpec, config: Any, *, rngs: nnx.Rngs):
        super().__init__(parts, spec, before=True, after=False, rngs=rngs)
        absent = (
            isinstance(parts.mixer, NoMixerConfig),
            isinstance(parts.feedforward, NoFeedForwardConfig),
        )
        self.mixer_streams, self.mlp_streams = (
            None if gone else streams.Connection(config, spec.width, spec.norm_eps, rngs=rngs)
            for gone in absent
        )

    def mixer_input(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        x_BTND = streams.received(context.cross_layer[streams.CHANNEL], x_BTD)
        if self.mixer_streams is None:
            return streams.mean(x_BTND)
        return self.mixer_norm(streams.read(x_BTND, self.mixer_streams.weights(x_BTND)))

    def join(
        self,
        x_BTD: jax.Array,
        mix: Half,
        feed: Half,
        context: SequenceContext,
        hook: Hook = unhooked,
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        x_BTND = streams.received(context.cross_layer[streams.CHANNEL], x_BTD)
        x_BTND, mixed = _on_streams(
            x_BTND, self.mixer_streams, self.mixer_norm, mix, NORM_1, MIXER_OUT, hook
        )
        x_BTND, fed = _on_streams(
            x_BTND, self.mlp_streams, self.mlp_norm, feed, NORM_2, MLP_OUT, hook
        )
        context.cross_layer[streams.CHANNEL] = split_over_batch(x_BTND)
        return streams.mean(x_BTND), (mixed, fed)


def _on_streams(
    x_BTND: jax.Array,
    connection: streams.Connection | None,
    norm: nnx.Module,
    half: Half,
    normed: str,
    out: str,
    hook: Hook,
) -> tuple[jax.Array, Any]:
    """The streams after a half, and its second result; a layer without the half leaves them."""
    if connection is None:
        return x_BTND, half(streams.mean(x_BTND))[1]
    weights = connection.weights(x_BTND)
    y_BTD, found = half(hook(normed, norm(streams.read(x_BTND, weights))))
    return streams.write(x_BTND, weights, hook(out, y_BTD)), found


class NormedBlock(Block):
    """The residual stream itself is normed before each half (MiniMax-01, arXiv 2501.08313)."""

    def __init__(self, parts: Parts, spec: LayerSpec, *, rngs: nnx.Rngs):
        self.mixer_norm = parts.norm_of(parts.mixer)
        self.mixer = parts.mixer.build(spec, rngs=rngs)
        self.mlp_norm = parts.norm_of(parts.feedforward)
        self.mlp = parts.feedforward.build(spec, rngs=rngs)
        self.add_mixer, self.add_mlp = parts.sums()

    def mixer_input(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self.mixer_norm(x_BTD)

    def run(
        self, x_BTD: jax.Array, mix: Half, feed: Half, hook: Hook = unhooked
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        x_BTD = hook(NORM_1, self.mixer_norm(x_BTD))
        y_BTD, mixed = mix(x_BTD)
        x_BTD = hook(MIDDLE, self.add_mixer(x_BTD, y_BTD, named(hook, MIXER_OUT)))
        x_BTD = hook(NORM_2, self.mlp_norm(x_BTD))
        y_BTD, fed = feed(x_BTD)
        return self.add_mlp(x_BTD, y_BTD, named(hook, MLP_OUT)), (mixed, fed)


class ParallelBlock(Block):
    """x + mixer(norm x) + feedforward(norm x), one norm for both (GPT-J, PaLM)."""

    def __init__(self, parts: Parts, spec: LayerSpec, *, rngs: nnx.Rngs):
        self.norm = parts.norm()
        self.mixer = parts.mixer.build(spec, rngs=rngs)
        self.mlp = parts.feedforward.build(spec, rngs=rngs)
        self.add_mixer, self.add_mlp = parts.sums()

    def mixer_input(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        return self.norm(x_BTD)

    def run(
        self, x_BTD: jax.Array, mix: Half, feed: Half, hook: Hook = unhooked
    ) -> tuple[jax.Array, tuple[Any, Any]]:
        normed_BTD = hook(NORM_1, self.norm(x_BTD))
        y_BTD, mixed = mix(normed_BTD)
        z_BTD, fed = feed(normed_BTD)
        x_BTD = self.add_mixer(x_BTD, y_BTD, named(hook, MIXER_OUT))
        return self.add_mlp(x_BTD, z_BTD, named(hook, MLP_OUT)), (mixed, fed)


BLOCKS: dict[str, Callable[..., Block]] = {
    "prenorm": functools.partial(SequentialBlock, before=True, after=False),
    "postnorm": functools.partial(SequentialBlock, before=False, after=True),
    "sandwich": functools.partial(SequentialBlock, before=True, after=True),
    "scaled_sandwich": functools.partial(ScaledBlock, before=True, after=True),
    "parallel": ParallelBlock,
    "normed": NormedBlock,
}


def build_block(
    model: ModelConfig, layer: Layer, index: int | jax.Array, *, rngs: nnx.Rngs
) -> Block:
    """The block of one layer of `model`; `index` as in `LayerSpec`."""
    spec = LayerSpec(model.width, model.norm_eps, (2 * model.depth) ** -0.5, index, model.depth)
    parts = Parts(
        model.mixer_of(layer),
        model.feedforward_of(layer),
        functools.partial(NORMS[model.norm], model.width, model.norm_eps),
        model.residual_scale,
        model.block_of(layer),
    )
    if model.streams is not None:
        block = StreamsBlock(parts, spec, model.streams, rngs=rngs)
    else:
        block = BLOCKS[parts.joins.norms](parts, spec, rngs=rngs)
    if model.per_layer is not None:
        block.per_layer = LayerInput(
            model.per_layer,
            model.width,
            norm=model.norm,
            norm_eps=model.norm_eps,
            out_scale=spec.out_scale,
            rngs=rngs,
        )
    return block


class Sum(nnx.Module):
    """`keep` x + `add` y, without a product where a factor is 1."""

    def __init__(self, keep: float, add: float):
        self.keep, self.add = scale(keep), scale(add)

    def __call__(
        self, x: jax.Array, y: jax.Array, hook: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        """The sum; `hook` names what is added."""
        return self.keep(x) + hook(self.add(y))


def named(hook: Hook, name: str) -> Callable[[jax.Array], jax.Array]:
    """`hook` for the activation `name`."""
    return functools.partial(hook, name)
