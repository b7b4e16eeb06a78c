"""What some mixers offer and others do not: attention heads, a window, slots.

Each capability is a protocol and a function that says whether a mixer has it:

- `Attends`, `attends(mixer)`: heads that attend to tokens;
- `HasWindow`, `has_window(mixer)`: a window that can be narrowed;
- `HasSlots`, `has_slots(mixer)`: memory slots that share a softmax with tokens.

Ask the functions, not `isinstance`: a mixer's class alone does not decide. A within-layer hybrid
attends if one of its branches does, and Native Hybrid Attention with window 0 has no window.
"""

import abc
from typing import Protocol, TypeGuard, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.mixers.base import Mixer, SequenceContext
from hybridlm.models.mixers.rows import AttentionRows


@runtime_checkable
class Attends(Protocol):
    """A mixer whose heads attend to tokens.

    Attributes:
      attention_heads: their number; 0 if this mixer has none after all.
    """

    @property
    def attention_heads(self) -> int: ...

    def attention_rows(
        self, x_BTD: jax.Array, context: SequenceContext, rows_BQ: jax.Array
    ) -> AttentionRows:
        """The attention of each head's queries at the tokens rows_BQ (int32, -1 for none).

        `x_BTD` is the mixer's input, as `__call__` takes it. Costs Q x T, never T x T.
        """

    def query_key_weights(self) -> tuple[jax.Array, jax.Array]:
        """(q_HP, k_HP): the weights that make each head's queries and keys, a row a head.

        A layer that attends to another's keys has none: k_HP is (H, 0).
        """

    def scale_heads(self, scale_H: jax.Array) -> None:
        """Multiplies each head's rows of the output projection by its scale; 0 removes the head."""


@runtime_checkable
class HasWindow(Protocol):
    """A mixer with a window that can be narrowed.

    Attributes:
      has_window: False if this mixer has none after all; `narrowed` is then not to be called.
    """

    @property
    def has_window(self) -> bool: ...

    def narrowed(self, window: int) -> Mixer:
        """A copy with the same weights whose queries see at most the last `window` tokens."""


@runtime_checkable
class HasSlots(Protocol):
    """A mixer whose softmax is over memory slots beside tokens.

    Gated slot attention does not count: its softmax is over slots alone.

    Attributes:
      slot_heads: heads with slots; 0 if this mixer has none after all.
    """

    @property
    def slot_heads(self) -> int: ...

    def slot_share(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        """(B, T, slot_heads), the part of each softmax on the slots; 0 at padding."""


def attention_heads(mixer: nnx.Module) -> int:
    """The number of heads that attend to tokens; 0 for a mixer without attention."""
    return mixer.attention_heads if isinstance(mixer, Attends) else 0


def attends(mixer: nnx.Module) -> TypeGuard[Attends]:
    """Whether the mixer has attention heads."""
    return attention_heads(mixer) > 0


def slot_heads(mixer: nnx.Module) -> int:
    """The number of heads with slots beside tokens; 0 for a mixer without."""
    return mixer.slot_heads if isinstance(mixer, HasSlots) else 0


def has_slots(mixer: nnx.Module) -> TypeGuard[HasSlots]:
    """Whether the mixer has slots beside tokens."""
    return slot_heads(mixer) > 0


def has_window(mixer: nnx.Module) -> TypeGuard[HasWindow]:
    """Whether the mixer has a window that can be narrowed."""
    return isinstance(mixer, HasWindow) and mixer.has_window


def narrowed(mixer: nnx.Module, window: int) -> Mixer:
    """A copy with the same weights whose queries see at most the last `window` tokens.

    Raises:
      ValueError: for a mixer without a window; `LastTokens` bounds what such a mixer sees.
    """
    if not has_window(mixer):
        raise ValueError(f"{type(mixer).__name__} has no window to narrow to {window}")
    return mixer.narrowed(window)


class AttentionMixer(Mixer):
    """Base of the mixers that attend, made of `q`, `k` and `out`.

    The outputs of `q` are `config.heads` heads side by side, those of `k` are `config.kv_heads`, and
    the inputs of `out` are `config.heads` again.
    """

    @property
    def attention_heads(self) -> int:
        return self.config.heads

    @abc.abstractmethod
    def attention_rows(
        self, x_BTD: jax.Array, context: SequenceContext, rows_BQ: jax.Array
    ) -> AttentionRows: ...

    def query_key_weights(self) -> tuple[jax.Array, jax.Array]:
        heads, kv_heads = self.config.heads, self.config.kv_heads
        if self.k is None:  # the keys are another layer's
            return by_head(self.q.kernel[...], heads), jnp.zeros((heads, 0))
        k_HP = jnp.repeat(by_head(self.k.kernel[...], kv_heads), heads // kv_heads, axis=0)
        return by_head(self.q.kernel[...], heads), k_HP

    def scale_heads(self, scale_H: jax.Array) -> None:
        kernel = self.out.kernel[...]
        scale_I = jnp.repeat(scale_H, kernel.shape[0] // self.attention_heads)
        self.out.kernel[...] = kernel * scale_I[:, None]


def by_head(kernel_DI: jax.Array, heads: int) -> jax.Array:
    """(H, P): the weights of each head in a row, from a kernel whose outputs are heads side by side."""
    width = kernel_DI.shape[0]
    return jnp.moveaxis(kernel_DI.reshape(width, heads, -1), 1, 0).reshape(heads, -1)
