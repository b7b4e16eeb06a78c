"""What every mixer is held to: the context it reads, and the settings that describe it.

A mixer is an `nnx.Module` built as `Mixer(config, spec, rngs=rngs)` that offers

- `__call__(x_BTD, context) -> y_BTD`, the parallel form of training;
- `init_state(batch, max_len, dtype) -> state`,
- `extend(x_BTD, context, state) -> (y_BTD, state)`, which continues from a carried state by any
  number of tokens: prefill with many, decoding with one. Split anywhere = whole; and
- `with_loss(x_BTD, context) -> (y_BTD, loss)`, which `Mixer` has for those without a loss.

What probes ask of it - heads, attention rows, slot shares, a narrower reach - `Mixer` answers for
those without attention and `AttentionMixer` for the others.

Its config is a frozen dataclass derived from `MixerConfig`. `hybridlm.models.dimensions` lists the
letters that names of arrays end in.
"""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.mixers import rows


class SequenceContext(NamedTuple):
    """What a mixer may know of its tokens besides their activations.

    Attributes:
      segment_ids_BT: int32; 0 is padding, a change of id is a document boundary.
      positions_BT: int32; index of the token in its document.
      window: int32 scalar of at least 1, or None: the parallel form of `attention` mixers with a
        window narrows theirs to it. Traced, so one program serves a schedule of windows; all
        other mixers, full attention among them, stay as they are.
    """

    segment_ids_BT: jax.Array
    positions_BT: jax.Array
    window: jax.Array | None = None

    @classmethod
    def of(cls, segment_ids_BT: jax.Array) -> "SequenceContext":
        """The context of whole documents: positions count from 0 after each change of id."""
        time = segment_ids_BT.shape[1]
        index_1T = jnp.arange(time, dtype=jnp.int32)[None]
        before_BT = jnp.pad(segment_ids_BT[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        starts_BT = jnp.where(segment_ids_BT != before_BT, index_1T, 0)
        return cls(segment_ids_BT, index_1T - jax.lax.cummax(starts_BT, axis=1))


class LayerSpec(NamedTuple):
    """What a layer takes over from its model.

    Attributes:
      width: size of the residual stream.
      norm_eps: epsilon of every RMSNorm.
      out_scale: factor on the initial output projections, 1/sqrt(2 * depth), so that the
        residual stream's variance does not grow with depth (GPT-2).
    """

    width: int
    norm_eps: float
    out_scale: float


@dataclasses.dataclass(frozen=True)
class MixerConfig(abc.ABC):
    """Settings of one named mixer; `kind_name` is what configs write as `kind`.

    `equation` (one line, for tables) and `source` (paper and section) say what it computes,
    `operations` which folders of kernels_pallas it calls. `holds_mixers` names the settings that
    are mappings from names to mixers, `head_settings` those that are numbers of heads.
    """

    kind_name: ClassVar[str]
    head_settings: ClassVar[tuple[str, ...]] = ()
    equation: ClassVar[str]
    source: ClassVar[str]
    operations: ClassVar[tuple[str, ...]] = ()
    holds_mixers: ClassVar[tuple[str, ...]] = ()

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

        None for a mixer without attention: what it knows of the past is a state of fixed size.
        """
        return None

    @property
    def has_loss(self) -> bool:
        """Whether the mixer adds a loss of its own to the training objective."""
        return False

    @property
    def mechanism(self) -> str:
        """A few words for tables and figures."""
        return self.kind_name


class Mixer(nnx.Module):
    """A mixer's module; this base has no loss of its own and no attention heads."""

    def with_loss(self, x_BTD: jax.Array, context: SequenceContext) -> tuple[jax.Array, jax.Array]:
        """The mixer's output, and what it adds to the training objective.

        The loss is a scalar in at least float32, weighted already, and a mean over real tokens
        (segment id not 0): micro-batches are weighted by their number of these.
        """
        return self(x_BTD, context), jnp.float32(0)

    @property
    def attention_heads(self) -> int:
        """Heads that attend to tokens."""
        return 0

    def attention_rows(
        self, x_BTD: jax.Array, context: SequenceContext, rows_BQ: jax.Array
    ) -> rows.AttentionRows:
        """The attention of each head's queries at the tokens rows_BQ (int32, -1 for none).

        `x_BTD` is the mixer's input, as `__call__` takes it. Nothing T x T is computed.
        """
        return rows.no_heads(rows_BQ, x_BTD.shape[1])

    def query_key_weights(self) -> tuple[jax.Array, jax.Array]:
        """(H, P) each: the weights from which each head's queries and keys are made."""
        return jnp.zeros((0, 0)), jnp.zeros((0, 0))

    def scale_heads(self, scale_H: jax.Array) -> None:
        """Multiplies what each attention head adds to the output, for good; 0 takes it away."""
        del scale_H  # there are none

    def slot_share(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        """(B, T, heads that have slots beside tokens), the part of each softmax on the slots."""
        return jnp.zeros((*x_BTD.shape[:2], 0))

    @property
    def has_window(self) -> bool:
        """Whether `narrowed` is there for it."""
        return False

    def narrowed(self, window: int) -> "Mixer":
        """A copy with the same weights that attends to the last `window` tokens at most.

        Raises:
          ValueError: for a mixer without a window; `LastTokens` bounds what that sees.
        """
        raise ValueError(f"{type(self).__name__} has no window to narrow to {window}")

    def _copy(self) -> "Mixer":
        graphdef, state = nnx.split(self)
        return nnx.merge(graphdef, jax.tree.map(lambda x: x, state))  # variables of its own


class AttentionMixer(Mixer):
    """A mixer with `config.heads` heads of `q`, `config.kv_heads` of `k`, that `out` reads."""

    @property
    def attention_heads(self) -> int:
        return self.config.heads

    @abc.abstractmethod
    def attention_rows(
        self, x_BTD: jax.Array, context: SequenceContext, rows_BQ: jax.Array
    ) -> rows.AttentionRows: ...

    def query_key_weights(self) -> tuple[jax.Array, jax.Array]:
        heads, kv_heads = self.config.heads, self.config.kv_heads
        k_HP = jnp.repeat(by_head(self.k.kernel[...], kv_heads), heads // kv_heads, axis=0)
        return by_head(self.q.kernel[...], heads), k_HP

    def scale_heads(self, scale_H: jax.Array) -> None:
        kernel = self.out.kernel[...]
        scale_I = jnp.repeat(scale_H, kernel.shape[0] // self.attention_heads)
        self.out.kernel[...] = kernel * scale_I[:, None]


def by_head(kernel_DI: jax.Array, heads: int) -> jax.Array:
    """(H, P): of a kernel whose outputs are heads side by side, each head's weights in a row."""
    width = kernel_DI.shape[0]
    return jnp.moveaxis(kernel_DI.reshape(width, heads, -1), 1, 0).reshape(heads, -1)
