"""What every mixer offers: the interface of its module, and of the settings that describe it.

A mixer is an `nnx.Module` derived from `Mixer`, built as `Mixer(config, spec, rngs=rngs)`. Its config
is a frozen dataclass derived from `MixerConfig`. What only some mixers offer - attention heads, a
window, slots - is in `hybridlm.models.mixers.capabilities`.

`hybridlm.models.dimensions` lists the letters that array names end in.
"""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.hooks import Hooks
from hybridlm.settings.bounds import settings


class SequenceContext(NamedTuple):
    """What a mixer reads about its tokens besides their activations.

    Attributes:
      segment_ids_BT: int32; 0 is padding, a change of id is a document boundary.
      positions_BT: int32; index of the token in its document.
      window: int32 scalar of at least 1, or None. `attention` mixers that have a window narrow it
        to this one in the parallel form. It is traced, so one program serves a schedule of
        windows. All other mixers, full attention among them, ignore it.
      cross_layer: arrays (B, T, ...) by name that go from layer to layer beside the residual stream
        (see `MixerConfig.cross_layer`). A layer may put new ones in their places, of the same shapes;
        the next layer reads them. None where no mixer of the model has any, or outside a model.
      layer: int32 scalar, the number of the layer that reads this; given with `cross_layer`.
      caches: in decoding, the caches of past tokens that layers hand on (`MixerConfig.hands_on`), by
        name. As `cross_layer`, a layer replaces its own.
      tokens_BT: int32, the tokens themselves; a model with per-layer inputs needs them.
      vector_BTP: the layer's own vector of each token; None without per-layer inputs.
      hooks: what keeps and changes activations in an analysis; None, in training too, for nothing.
    """

    segment_ids_BT: jax.Array
    positions_BT: jax.Array
    window: jax.Array | None = None
    cross_layer: dict[str, jax.Array] | None = None
    layer: jax.Array | int | None = None
    caches: dict[str, Any] | None = None
    tokens_BT: jax.Array | None = None
    vector_BTP: jax.Array | None = None
    hooks: Hooks | None = None

    @classmethod
    def of(cls, segment_ids_BT: jax.Array) -> "SequenceContext":
        """The context of whole documents: positions count from 0 after each change of id."""
        time = segment_ids_BT.shape[1]
        index_1T = jnp.arange(time, dtype=jnp.int32)[None]
        before_BT = jnp.pad(segment_ids_BT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        starts_BT = jnp.where(segment_ids_BT != before_BT, index_1T, 0)
        return cls(segment_ids_BT, index_1T - jax.lax.cummax(starts_BT, axis=1))

    def hook(self, name: str, x: jax.Array, heads: int | None = None) -> jax.Array:
        """x, which an analysis may keep or change by this name; see `hybridlm.models.hooks`.

        Args:
          heads: splits the last axis of x, (B, T, heads * size), where it is kept or changed.
        """
        if self.hooks is None:
            return x
        if heads is None:
            return self.hooks(name, x)
        return self.hooks(name, x.reshape(*x.shape[:2], heads, -1)).reshape(x.shape)

    def asks(self, *names: str) -> bool:
        """Whether an analysis keeps or changes one of these: for what is computed for it alone."""
        return self.hooks is not None and self.hooks.asks(*names)

    def edits(self, *names: str) -> bool:
        """Whether an analysis changes one of these."""
        return self.hooks is not None and self.hooks.edits(*names)

    def within(self, scope: str) -> "SequenceContext":
        """The context of a part of a layer, whose activations' names begin with `scope`."""
        return self if self.hooks is None else self._replace(hooks=self.hooks.within(scope))

    def hand_on(self, name: str | None, arrays: Mapping[str, jax.Array], cache: Any = None) -> None:
        """Puts a layer's arrays, and its cache by `name`, where layers above read them.

        Does nothing without a name, outside a model and, for the cache, where nothing is decoded.
        """
        if name is None or self.cross_layer is None:
            return
        self.cross_layer.update(arrays)
        if cache is not None and self.caches is not None:
            self.caches[name] = cache

    def apart(self) -> "SequenceContext":
        """A context with a `cross_layer` of its own: no layer reads what a mixer puts there."""
        if self.cross_layer is None:
            return self
        return self._replace(cross_layer=dict(self.cross_layer))


class LayerSpec(NamedTuple):
    """What a layer's mixer takes from the model's settings.

    Attributes:
      width: size of the residual stream.
      norm_eps: epsilon of every RMSNorm.
      out_scale: factor on the initial output projections, 1/sqrt(2 * depth), so that the
        residual stream's variance does not grow with depth (GPT-2).
      index: number of the layer in its model, from 0 at the bottom. Traced where layers are
        stacked: initial values may depend on it, attributes of the module may not.
      depth: number of layers in the model.
    """

    width: int
    norm_eps: float
    out_scale: float
    index: int | jax.Array = 0
    depth: int = 1


@settings
class MixerConfig(abc.ABC):
    """Settings of one named mixer; `kind_name` is what configs write as `kind`.

    `equation` (one line, for tables) and `source` (paper and section) say what it computes,
    `operations` which folders of kernels_pallas it calls. `holds_mixers` names the settings that
    are mappings from names to mixers, `head_settings` those that are numbers of heads, `cache_names`
    those that name a cache which the layer gives to layers above, or reads from one below.
    `other_names` are what papers and other code call the mixer, each with the settings that make it
    that one, or ""; errors propose them.
    """

    kind_name: ClassVar[str]
    head_settings: ClassVar[tuple[str, ...]] = ()
    equation: ClassVar[str]
    source: ClassVar[str]
    operations: ClassVar[tuple[str, ...]] = ()
    holds_mixers: ClassVar[tuple[str, ...]] = ()
    cache_names: ClassVar[tuple[str, str]] = ("kv_out", "kv_in")
    other_names: ClassVar[Mapping[str, str]] = {}

    def check_width(self, width: int) -> None:
        """Raises `Invalid` where the settings do not fit a residual stream of this width."""

    @abc.abstractmethod
    def build(self, spec: LayerSpec, *, rngs: Any) -> Any:
        """The mixer's module."""

    @abc.abstractmethod
    def flops_per_token(self, width: int, seq_len: int) -> float:
        """FLOPs of the forward pass per token, averaged over a sequence of `seq_len` tokens.

        A multiply-add counts 2; softmaxes, norms and other element-wise work count 0. Causal
        attention counts the keys a token really attends to.
        """

    @abc.abstractmethod
    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        """Bytes one sequence holds in this layer after `seq_len` tokens of decoding.

        Keys and values count `itemsize` bytes an element, recurrent states 4 (they are float32).
        """

    def head_counts(self, width: int) -> dict[str, int]:
        """By setting, the numbers of heads, each of which `mesh.tensor` must divide.

        A kind whose heads are not among its settings overrides this and says what they come from.
        """
        return {name: getattr(self, name) for name in self.head_settings}

    def reach(self, seq_len: int) -> int | None:
        """Tokens a query attends to at most, its own included, in a sequence of `seq_len`.

        None for a mixer without attention, which keeps a state of fixed size.
        """
        return None

    def cross_layer(self, width: int, depth: int) -> dict[str, tuple[int, ...]]:
        """By name, what follows (B, T) in the shapes of arrays that layers hand on to later layers.

        They enter the lowest layer as zeros, in the residual stream's dtype. Mixers that name the
        same array share it: a value residual (RWKV-7) is one array of a value's size, attention over
        earlier layers one of (depth, width).
        """
        return {}

    @property
    def hands_on(self) -> str | None:
        """The name under which layers above may read this layer's cache, besides `cross_layer`."""
        return None

    def handed_on(self, state: Any) -> Any:
        """The part of the decoding state that layers above read, where `hands_on` is a name."""
        return state

    @property
    def reads_cache(self) -> str | None:
        """The name of the cache of a layer below that this layer reads."""
        return None

    @property
    def cache_kind(self) -> tuple[Any, ...]:
        """What a layer that hands its cache on and one that reads it have in common."""
        return (self.kind_name,)

    @property
    def has_loss(self) -> bool:
        """Whether the mixer adds a loss of its own to the training objective."""
        return False

    @property
    def mechanism(self) -> str:
        """A few words for tables and figures."""
        return self.kind_name


class Mixer(nnx.Module):
    """A mixer's module.

    `__call__` is the parallel form of training. `extend` continues from a carried state by any number
    of tokens: many to prefill, one to decode. Splitting a sequence anywhere changes no output.
    """

    @abc.abstractmethod
    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        """The output (B, T, D) of whole sequences."""

    def with_loss(self, x_BTD: jax.Array, context: SequenceContext) -> tuple[jax.Array, jax.Array]:
        """The output, and the loss that the mixer adds to the training objective, 0 by default.

        The loss is a scalar in at least float32, already weighted, and a mean over real tokens
        (segment id not 0), because micro-batches are weighted by their number of real tokens.
        """
        return self(x_BTD, context), jnp.float32(0)

    @abc.abstractmethod
    def init_state(self, batch: int, max_len: int, dtype: jnp.dtype) -> Any:
        """The state before the first of at most `max_len` tokens; caches hold `dtype`."""

    @abc.abstractmethod
    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: Any
    ) -> tuple[jax.Array, Any]:
        """The output (B, T, D) of the next T tokens, and the state after them."""
