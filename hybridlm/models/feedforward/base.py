"""What every feed-forward is held to, and the settings that describe it.

A feed-forward is the half of a layer that follows the mixer: an `nnx.Module` built as
`FeedForward(config, spec, rngs=rngs)`. Most read one token at a time; one that reads its
neighbours (a token shift) has a state, as mixers have. Its config is a frozen dataclass derived
from `FeedForwardConfig`.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.mixers.base import LayerSpec, SequenceContext


@dataclasses.dataclass(frozen=True)
class FeedForwardConfig(abc.ABC):
    """Settings of one feed-forward; `kind_name` is what configs write as `kind`.

    `equation` (one line) and `source` (paper and section) say what it computes.
    """

    kind_name: ClassVar[str]
    equation: ClassVar[str]
    source: ClassVar[str]

    @abc.abstractmethod
    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "FeedForward":
        """The module."""

    @abc.abstractmethod
    def parameters(self, width: int) -> int:
        """Number of parameters in a model of `width`."""

    def active_parameters(self, width: int) -> int:
        """Number of parameters that one token uses: all of them, but for mixtures of experts."""
        return self.parameters(width)

    @abc.abstractmethod
    def flops_per_token(self, width: int) -> float:
        """FLOPs of the forward pass per token; a multiply-add counts 2, element-wise work 0."""

    @abc.abstractmethod
    def kept_per_token(self, width: int) -> int:
        """Numbers per token that the backward pass reads and that are as wide as the hidden layer."""

    @property
    def has_loss(self) -> bool:
        """Whether it adds a loss of its own to the training objective."""
        return False

    @property
    def mechanism(self) -> str:
        """A few words for tables."""
        return self.kind_name


class FeedForward(nnx.Module):
    """A feed-forward's module; this base has no loss of its own and no state."""

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        """What the layer adds to the residual stream, from the normed stream."""
        raise NotImplementedError

    def with_loss(self, x_BTD: jax.Array, context: SequenceContext) -> tuple[jax.Array, jax.Array]:
        """The output, and a scalar loss: weighted already, a mean over real tokens."""
        return self(x_BTD, context), jnp.float32(0)

    def init_state(self, batch: int, dtype: jnp.dtype) -> Any:
        """The state before any token."""
        del batch, dtype
        return ()

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: Any
    ) -> tuple[jax.Array, Any]:
        """As `__call__`, continuing from a state, and the new state."""
        return self(x_BTD, context), state
