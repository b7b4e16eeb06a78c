"""HybridLM: a decoder-only language model whose layers follow a pattern of named mixers."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models import stack as stacks
from hybridlm.models.block import Block, build_block
from hybridlm.models.layers import Linear
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.mixers.capabilities import attends
from hybridlm.models.norms import NORMS
from hybridlm.models.per_layer import PerLayerInputs
from hybridlm.models.settings import ModelConfig
from hybridlm.models.stack import ByGroup, Remat, Stack
from hybridlm.parallel.axes import split_over_batch

DecodeState = dict[str, Any]
#: (block, index, x_BTD, context, carry, input) -> (x_BTD, carry, output), for `apply_layers`.
Apply = Callable[[Block, int, jax.Array, SequenceContext, Any, Any], tuple[jax.Array, Any, Any]]


class HybridLM(nnx.Module):
    """Embedding, prefix layers, a scanned repeating unit, suffix layers, norm and head.

    Attributes:
      prefix, unit, suffix: the blocks of the layers; see `hybridlm.models.stack`.
      per_layer: makes the vectors that layers add (`hybridlm.models.per_layer`); None without any.
    """

    per_layer: PerLayerInputs | None = None

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        if config.vocab_size is None:
            raise ValueError("model.vocab_size is None: set it from the tokenizer first")
        self.config = config
        embedding = jax.random.normal(rngs.params(), (config.vocab_size, config.width))
        self.embedding = nnx.Param(embedding * config.init_std, axes=("vocab", "embed"))
        if config.per_layer is not None:
            self.per_layer = PerLayerInputs(
                config.per_layer,
                config.width,
                config.depth,
                config.vocab_size,
                norm=config.norm,
                norm_eps=config.norm_eps,
                init_std=config.init_std,
                rngs=rngs,
            )
        self.prefix, self.unit, self.suffix = stacks.build(
            config.layout, lambda layer, i, rngs: build_block(config, layer, i, rngs=rngs), rngs
        )
        self.final_norm = NORMS[config.norm](config.width, config.norm_eps)
        if not config.tie_embeddings:
            self.head = Linear(
                config.width, config.vocab_size, ("embed", "vocab"), rngs=rngs, muon=False
            )

    @property
    def stack(self) -> Stack:
        """The blocks of all layers, with methods that iterate over them."""
        return Stack(self.prefix, self.unit, self.suffix, self.config.layout.repeats)

    def __call__(self, tokens_BT: jax.Array, context: SequenceContext) -> jax.Array:
        """Logits (B, T, V), float32. Training does not compute them: see `hybridlm.models.loss`."""
        return self.logits(self.hidden(tokens_BT, context))

    def hidden(
        self,
        tokens_BT: jax.Array,
        context: SequenceContext,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: Remat = Remat(),
        scan: bool = True,
    ) -> jax.Array:
        """The residual stream (B, T, D) after the final norm, in `dtype`; the head reads it.

        Args:
          tokens_BT: int32.
          context: segment ids and positions.
          dtype: dtype of activations and matmuls.
          remat: what the backward pass computes again.
          scan: False unrolls the repeated unit (for tests and analyses).
        """
        context = context._replace(tokens_BT=tokens_BT)
        return self.hidden_from(self.embed(tokens_BT, dtype), context, remat=remat, scan=scan)

    def embed(self, tokens_BT: jax.Array, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        """The residual stream (B, T, D) that enters the first layer."""
        x_BTD = split_over_batch(self.embedding[...].astype(dtype)[tokens_BT])
        scale = self.config.embedding_scale
        return x_BTD if scale == 1.0 else x_BTD * jnp.asarray(scale, dtype)

    def hidden_from(
        self,
        x_BTD: jax.Array,
        context: SequenceContext,
        *,
        remat: Remat = Remat(),
        scan: bool = True,
    ) -> jax.Array:
        """As `hidden`, from the output of `embed`; with per-layer inputs the context has the tokens."""

        def apply(block, index, x_BTD, context, carry, given):
            return split_over_batch(block(x_BTD, context)), carry, None

        x_BTD, _, _ = self.apply_layers(apply, x_BTD, context, remat=remat, unroll=not scan)
        return context.hook("ln_final.hook_normalized", self.final_norm(x_BTD))

    def hidden_and_loss(
        self,
        tokens_BT: jax.Array,
        context: SequenceContext,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: Remat = Remat(),
        scan: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """The output of `hidden`, and the sum of the layers' own losses, a scalar.

        The loss is a mean over tokens without padding, in float32 (float64 if `dtype` is float64).
        """

        def apply(block, index, x_BTD, context, total, given):
            x_BTD, loss = block.with_loss(x_BTD, context)
            return split_over_batch(x_BTD), total + loss.astype(total.dtype), None

        zero = jnp.zeros((), jnp.promote_types(dtype, jnp.float32))
        context = context._replace(tokens_BT=tokens_BT)
        x_BTD = self.embed(tokens_BT, dtype)
        x_BTD, loss, _ = self.apply_layers(
            apply, x_BTD, context, zero, remat=remat, unroll=not scan
        )
        return self.final_norm(x_BTD), loss

    def apply_layers(
        self,
        apply: Apply,
        x_BTD: jax.Array,
        context: SequenceContext,
        carry: Any = None,
        inputs: ByGroup | None = None,
        *,
        caches: dict[str, Any] | None = None,
        remat: Remat = Remat(),
        unroll: bool = False,
    ) -> tuple[jax.Array, Any, ByGroup]:
        """Applies a function to every layer, bottom to top, and passes cross-layer arrays on.

        Args:
          apply: (block, index, x_BTD, context, carry, input) -> (x_BTD, carry, output) of a layer;
            for `index`, `inputs`, `remat` and `unroll` see `Stack.scan`. Hooks in the context unroll.
          x_BTD: the output of `embed`.
          caches: in decoding, a cache of each name that layers hand on, of the right shapes.

        Returns:
          The residual stream before the final norm, the last carry, and the layers' outputs.

        Raises:
          ValueError: for a model with per-layer inputs, where the context has no tokens.
        """
        if context.hooks is not None:  # activations leave neither a scan nor a checkpoint
            remat, unroll = Remat(), True
        x_BTD = context.hook("hook_embed", x_BTD)
        config, batch = self.config, x_BTD.shape[:2]
        shapes = config.cross_layer()
        arrays = {n: _carried(jnp.zeros((*batch, *s), x_BTD.dtype)) for n, s in shapes.items()}
        numbers = None
        if arrays:
            numbers = stacks.by_group(list(range(config.depth)), config.layout)
        vectors = self._vectors(x_BTD, context)
        given = {
            group: {
                name: tuple(stacks.entry(x, group, name) for x in (numbers, vectors, inputs))
                for name in blocks
            }
            for group, blocks in stacks.block_names(config.layout).items()
        }

        def body(block: Block, index: int, state: Any, given: Any) -> tuple[Any, Any]:
            (x_BTD, arrays, caches, carry), (number, vector, own) = state, given
            here = context.within(f"blocks.{index}")._replace(vector_BTP=vector)
            if arrays:
                here = here._replace(cross_layer=dict(arrays), layer=number)
            if caches:
                here = here._replace(caches=dict(caches))
            x_BTD, carry, output = apply(block, index, x_BTD, here, carry, own)
            if arrays:
                arrays = {
                    n: _carried(here.cross_layer[n].astype(x.dtype)) for n, x in arrays.items()
                }
            return (x_BTD, arrays, here.caches or {}, carry), output

        state = (x_BTD, arrays, caches or {}, carry)
        (x_BTD, *_, carry), outputs = self.stack.scan(
            body, state, given, remat=remat, unroll=unroll
        )
        return x_BTD, carry, outputs

    def _vectors(self, x_BTD: jax.Array, context: SequenceContext) -> ByGroup | None:
        """The vectors of `hybridlm.models.per_layer` by layer; None for a model without them."""
        if self.per_layer is None:
            return None
        if context.tokens_BT is None:
            raise ValueError("a model with per-layer inputs needs the tokens: context.tokens_BT")
        return stacks.by_group(self.per_layer(context.tokens_BT, x_BTD), self.config.layout)

    def blocks(self) -> Iterator[tuple[str, Block]]:
        """(mixer name, block) of each layer, bottom to top.

        A block of the repeating unit is a copy, with the slice of the parameters of one layer.
        """
        for name, (_, block) in zip(self.config.layout.names, self.stack.blocks(), strict=True):
            yield name, block

    def map_layers(
        self, x_BTD: jax.Array, context: SequenceContext, function: Callable[..., Any]
    ) -> tuple[jax.Array, list[Any]]:
        """Applies a function to each layer's input and output; program size is constant in depth.

        Args:
          x_BTD: the output of `embed`.
          function: (index, block, x_BTD, y_BTD, context) -> any pytree; x_BTD and y_BTD are the
            block's input and output, and context is what the block read. It is traced once for each
            layer of the repeating unit, with the index of that layer's first repeat.

        Returns:
          The residual stream before the final norm, and the function's results for all layers,
          bottom to top.
        """

        def apply(block, index, x_BTD, context, carry, given):
            before = context.apart()  # the block replaces cross-layer arrays
            y_BTD = block(x_BTD, context)
            return y_BTD, carry, function(index, block, x_BTD, y_BTD, before)

        x_BTD, _, found = self.apply_layers(apply, x_BTD, context)
        return x_BTD, stacks.by_layer(found, self.config.layout)

    def scale_heads(self, scales: Sequence[jax.Array]) -> None:
        """Multiplies the output of each attention head by a factor; changes the parameters.

        Args:
          scales: for each layer, bottom to top, factors (H,) of its H attention heads.
        """

        def scale(block: Block, scale_H: jax.Array) -> None:
            if attends(block.mixer):
                block.mixer.scale_heads(scale_H)

        self.stack.update(scale, stacks.by_group(scales, self.config.layout))

    def head_kernel(self) -> jax.Array:
        """The head's kernel (D, V), float32; the transposed embedding if they are tied."""
        if self.config.tie_embeddings:
            return self.embedding[...].T
        return self.head.kernel[...]

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Scaled and soft-capped logits, accumulated in float32."""
        kernel_DV = self.head_kernel().astype(hidden_BTD.dtype)
        accumulator = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
        logits = jnp.dot(hidden_BTD, kernel_DV, preferred_element_type=accumulator)
        if self.config.logit_scale != 1.0:
            logits = logits * self.config.logit_scale
        cap = self.config.logit_soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def init_decode(self, batch: int, max_len: int, dtype: jnp.dtype = jnp.float32) -> DecodeState:
        """Empty states of all layers, for documents of at most `max_len` tokens.

        Documents may be longer if no mixer attends to more than `max_len` tokens.
        """
        layers = self.stack.map(lambda block, _: block.init_state(batch, max_len, dtype))
        mixers = (mixer for _, mixer in self.config.layer_mixers())
        farthest = max(mixer.reach(max_len + 1) or 0 for mixer in mixers)
        capacity = max_len if farthest > max_len else jnp.iinfo(jnp.int32).max
        return layers | {"capacity": jnp.int32(capacity)}

    def _caches(self, state: DecodeState) -> dict[str, Any]:
        """A cache of each name that layers hand on: of the lowest such layer, for its shapes."""
        found: dict[str, Any] = {}
        layout = self.config.layout
        for layer, address in zip(layout.layers, stacks.addresses(layout), strict=True):
            mixer = self.config.mixer_of(layer)
            name = mixer.hands_on
            if name is not None and name not in found:
                found[name] = mixer.handed_on(stacks.layer_params(state, address).mixer)
        return found

    def extend(
        self,
        tokens_BT: jax.Array,
        context: SequenceContext,
        state: DecodeState,
        *,
        dtype: jnp.dtype = jnp.float32,
    ) -> tuple[jax.Array, DecodeState]:
        """Logits (B, T, V) of the next T tokens after `state`, and the new state.

        Logits are NaN at positions past the state's capacity, because the cache has overwritten
        some of the tokens that they attend to.
        """

        def apply(block, index, x_BTD, context, carry, state):
            x_BTD, state = block.extend(x_BTD, context, state)
            return x_BTD, carry, state

        context = context._replace(tokens_BT=tokens_BT)
        x_BTD = self.embed(tokens_BT, dtype)
        x_BTD, _, layers = self.apply_layers(
            apply, x_BTD, context, inputs=state, caches=self._caches(state)
        )
        capacity = state["capacity"]
        past_BT1 = (context.positions_BT >= capacity)[:, :, None]
        logits_BTV = self.logits(jnp.where(past_BT1, jnp.nan, self.final_norm(x_BTD)))
        return logits_BTV, layers | {"capacity": capacity}


def _carried(x: jax.Array) -> jax.Array:
    """An array (B, T, ...) that layers hand on, split like the residual stream; heads as XLA likes."""
    return split_over_batch(x, rest_whole=False)
