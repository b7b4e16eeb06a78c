"""HybridLM: a decoder-only language model whose layers follow a pattern of named mixers."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.block import Block, build_block
from hybridlm.models.layers import Linear, RMSNorm
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.mixers.capabilities import attends
from hybridlm.models.settings import ModelConfig
from hybridlm.parallel.axes import split_over_batch

Remat = Callable[[Callable[..., Any]], Callable[..., Any]]
DecodeState = dict[str, Any]


class HybridLM(nnx.Module):
    """Embedding, prefix layers, a scanned repeating unit, suffix layers, norm and head.

    Attributes:
      prefix, suffix: blocks by name, "0_swa" being the mixer "swa" in that group's layer 0.
      unit: the same for the repeating unit; its parameters have a leading axis of `repeats`.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        if config.vocab_size is None:
            raise ValueError("model.vocab_size is None: take it from the tokenizer first")
        layout = config.layout
        self.config = config
        self.repeats = layout.repeats
        embedding = jax.random.normal(rngs.params(), (config.vocab_size, config.width))
        self.embedding = nnx.Param(embedding * config.init_std, axes=("vocab", "embed"))
        self.prefix = _group(config, layout.prefix, rngs)
        self.unit = _stacked(lambda rngs: _group(config, layout.unit, rngs), layout.repeats, rngs)
        self.suffix = _group(config, layout.suffix, rngs)
        self.final_norm = RMSNorm(config.width, config.norm_eps)
        if not config.tie_embeddings:
            self.head = Linear(config.width, config.vocab_size, ("embed", "vocab"), rngs=rngs)

    def __call__(self, tokens_BT: jax.Array, context: SequenceContext) -> jax.Array:
        """Logits (B, T, V), float32. Training does not call this: see `hybridlm.models.loss`."""
        return self.logits(self.hidden(tokens_BT, context))

    def hidden(
        self,
        tokens_BT: jax.Array,
        context: SequenceContext,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: Remat = lambda f: f,
        scan: bool = True,
    ) -> jax.Array:
        """The normed residual stream (B, T, D) in `dtype` that the head reads.

        Args:
          tokens_BT: int32.
          context: segment ids and positions.
          dtype: of activations and matmuls.
          remat: wraps one application of the repeating unit, e.g. in `jax.checkpoint`.
          scan: False unrolls the repeated unit (for tests and analyses).
        """
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
        remat: Remat = lambda f: f,
        scan: bool = True,
    ) -> jax.Array:
        """As `hidden`, from what `embed` gives."""
        return self.final_norm(self._layers(_apply, x_BTD, context, remat, scan))

    def blocks(self) -> Iterator[tuple[str, Block]]:
        """(mixer name, block) of each layer, bottom to top.

        A block of the repeated unit has one layer's parameters, sliced out: it is a copy.
        """
        yield from _named(self.prefix)
        graphdef, stacked = nnx.split(self.unit)
        for i in range(self.repeats):
            yield from _named(nnx.merge(graphdef, jax.tree.map(lambda p, i=i: p[i], stacked)))
        yield from _named(self.suffix)

    def walk(
        self, x_BTD: jax.Array, context: SequenceContext, look: Callable[..., Any]
    ) -> tuple[jax.Array, list[Any]]:
        """Through all layers, looking into each; what compiles does not grow with depth.

        Args:
          x_BTD: what `embed` gives.
          look: (index, block, x_BTD, y_BTD) -> any pytree, of what enters and leaves the block. It
            is called once for each layer of the repeating unit, `index` being its lowest copy's.

        Returns:
          The residual stream before the final norm, and `look`'s results of all layers, bottom to
          top.
        """

        def group(blocks: nnx.Dict, x: jax.Array, first: int) -> tuple[jax.Array, list[Any]]:
            found = []
            for index, (_, block) in enumerate(_items(blocks), start=first):
                y = block(x, context)
                found.append(look(index, block, x, y))
                x = y
            return x, found

        first, count = len(self.prefix), len(self.unit)
        x_BTD, found = group(self.prefix, x_BTD, 0)
        if self.repeats:
            graphdef, stacked = nnx.split(self.unit)

            def unit(x: jax.Array, state: nnx.State):
                return group(nnx.merge(graphdef, state), x, first)

            x_BTD, each = jax.lax.scan(unit, x_BTD, stacked)
            for i in range(self.repeats):
                found += jax.tree.map(lambda leaf, i=i: leaf[i], each)
        x_BTD, above = group(self.suffix, x_BTD, first + self.repeats * count)
        return x_BTD, found + above

    def scale_heads(self, scales: Sequence[jax.Array]) -> None:
        """Multiplies what each attention head adds to its layer's output, for good.

        Args:
          scales: (H,) of each layer, bottom to top, H being the number of its attention heads.
        """
        first, count = len(self.prefix), len(self.unit)
        _scale_heads(self.prefix, scales[:first])
        if self.repeats:
            graphdef, stacked = nnx.split(self.unit)
            unit = [
                jnp.stack(scales[first + i : first + self.repeats * count : count])
                for i in range(count)
            ]

            def one(state: nnx.State, scales: list[jax.Array]) -> nnx.State:
                blocks = nnx.merge(graphdef, state)
                _scale_heads(blocks, scales)
                return nnx.state(blocks)

            nnx.update(self.unit, jax.vmap(one)(stacked, unit))
        _scale_heads(self.suffix, scales[first + self.repeats * count :])

    def hidden_and_loss(
        self,
        tokens_BT: jax.Array,
        context: SequenceContext,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: Remat = lambda f: f,
        scan: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """What `hidden` gives, and the sum of the mixers' own losses, a scalar.

        The loss is a mean over real tokens, in float32 (float64 for a float64 `dtype`).
        """
        loss = jnp.zeros((), jnp.promote_types(dtype, jnp.float32))
        carry = self.embed(tokens_BT, dtype), loss
        x_BTD, loss = self._layers(_apply_with_loss, carry, context, remat, scan)
        return self.final_norm(x_BTD), loss

    def head_kernel(self) -> jax.Array:
        """(D, V), float32: the embedding transposed where they are tied."""
        if self.config.tie_embeddings:
            return self.embedding[...].T
        return self.head.kernel[...]

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Soft-capped logits, accumulated in float32."""
        kernel_DV = self.head_kernel().astype(hidden_BTD.dtype)
        accumulator = jnp.promote_types(hidden_BTD.dtype, jnp.float32)
        logits = jnp.dot(hidden_BTD, kernel_DV, preferred_element_type=accumulator)
        cap = self.config.logit_soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def init_decode(self, batch: int, max_len: int, dtype: jnp.dtype = jnp.float32) -> DecodeState:
        """Empty per-layer states for documents of at most `max_len` tokens.

        Any number more may follow where no mixer attends further back than that many.
        """

        def group(blocks: nnx.Dict) -> DecodeState:
            return {n: b.mixer.init_state(batch, max_len, dtype) for n, b in _items(blocks)}

        unit = {}
        if self.repeats:
            # A mixer may read its state's shape off its parameters: it must see one layer's.
            graphdef, stacked = nnx.split(self.unit)
            one = group(nnx.merge(graphdef, jax.tree.map(lambda p: p[0], stacked)))
            unit = jax.tree.map(lambda x: jnp.broadcast_to(x, (self.repeats, *x.shape)), one)
        groups = {"prefix": group(self.prefix), "unit": unit, "suffix": group(self.suffix)}
        mixers = (self.config.mixers[name] for name in self.config.layout.names)
        farthest = max(mixer.reach(max_len + 1) or 0 for mixer in mixers)
        room = max_len if farthest > max_len else jnp.iinfo(jnp.int32).max
        return groups | {"room": jnp.int32(room)}

    def extend(
        self,
        tokens_BT: jax.Array,
        context: SequenceContext,
        state: DecodeState,
        *,
        dtype: jnp.dtype = jnp.float32,
    ) -> tuple[jax.Array, DecodeState]:
        """Logits (B, T, V) of the next T tokens, continuing from `state`, and the new state.

        They are NaN for tokens that stand further into their document than the state has room
        for: some of what they attend to was overwritten.
        """
        x_BTD = self.embed(tokens_BT, dtype)
        x_BTD, prefix = _extend(self.prefix, x_BTD, context, state["prefix"])
        unit = state["unit"]
        if self.repeats:
            graphdef, stacked = nnx.split(self.unit)

            def body(x: jax.Array, xs: tuple[nnx.State, DecodeState]):
                params, layer_state = xs
                return _extend(nnx.merge(graphdef, params), x, context, layer_state)

            x_BTD, unit = jax.lax.scan(body, x_BTD, (stacked, unit))
        x_BTD, suffix = _extend(self.suffix, x_BTD, context, state["suffix"])
        lost_BT1 = (context.positions_BT >= state["room"])[:, :, None]
        logits_BTV = self.logits(jnp.where(lost_BT1, jnp.nan, self.final_norm(x_BTD)))
        return logits_BTV, {"prefix": prefix, "unit": unit, "suffix": suffix, "room": state["room"]}

    def _layers(
        self,
        apply: Callable[..., Any],
        carry: Any,
        context: SequenceContext,
        remat: Remat,
        scan: bool,
    ) -> Any:
        """`carry = apply(blocks, carry, context)` through prefix, repeated unit and suffix."""
        carry = apply(self.prefix, carry, context)
        if self.repeats:
            graphdef, stacked = nnx.split(self.unit)

            @remat
            def unit(carry: Any, state: nnx.State) -> Any:
                return apply(nnx.merge(graphdef, state), carry, context)

            if scan:
                carry, _ = jax.lax.scan(lambda c, state: (unit(c, state), None), carry, stacked)
            else:
                for i in range(self.repeats):
                    carry = unit(carry, jax.tree.map(lambda p, i=i: p[i], stacked))
        return apply(self.suffix, carry, context)


def _group(config: ModelConfig, names: tuple[str, ...], rngs: nnx.Rngs) -> nnx.Dict:
    return nnx.Dict(
        {f"{i}_{name}": build_block(config, name, rngs=rngs) for i, name in enumerate(names)}
    )


def _stacked(make: Callable[[nnx.Rngs], nnx.Dict], repeats: int, rngs: nnx.Rngs) -> nnx.Dict:
    """`repeats` independent initialisations of `make`, stacked along a new leading axis."""
    if not repeats:
        return nnx.Dict()
    keys = jax.random.split(rngs.params(), repeats)
    states = jax.vmap(lambda key: nnx.state(make(nnx.Rngs(key))))(keys)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    return nnx.merge(graphdef, states)


def _items(blocks: nnx.Dict) -> list[tuple[str, nnx.Module]]:
    """Blocks bottom to top."""
    return sorted(blocks.items(), key=lambda item: int(item[0].split("_", 1)[0]))


def _named(blocks: nnx.Dict) -> Iterator[tuple[str, Block]]:
    for name, block in _items(blocks):
        yield name.split("_", 1)[1], block


def _scale_heads(blocks: nnx.Dict, scales: Sequence[jax.Array]) -> None:
    for (_, block), scale_H in zip(_items(blocks), scales, strict=True):
        if attends(block.mixer):
            block.mixer.scale_heads(scale_H)


def _apply(blocks: nnx.Dict, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
    for _, block in _items(blocks):
        x_BTD = split_over_batch(block(x_BTD, context))
    return x_BTD


def _apply_with_loss(
    blocks: nnx.Dict, carry: tuple[jax.Array, jax.Array], context: SequenceContext
) -> tuple[jax.Array, jax.Array]:
    x_BTD, total = carry
    for _, block in _items(blocks):
        x_BTD, loss = block.with_loss(x_BTD, context)
        x_BTD = split_over_batch(x_BTD)
        total += loss.astype(total.dtype)
    return x_BTD, total


def _extend(
    blocks: nnx.Dict, x_BTD: jax.Array, context: SequenceContext, state: DecodeState
) -> tuple[jax.Array, DecodeState]:
    new_state = {}
    for name, block in _items(blocks):
        x_BTD, new_state[name] = block.extend(x_BTD, context, state[name])
    return x_BTD, new_state
