"""The interface of feed-forwards, and the base of their settings.

A feed-forward is the half of a layer that follows the mixer. Its config is a frozen dataclass
derived from `FeedForwardConfig`, whose `build` makes the `nnx.Module`. Most feed-forwards read one
token at a time; one that reads neighbouring tokens (a token shift) has a state, as mixers have.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from hybridlm.models.mixers.base import LayerSpec, SequenceContext


@dataclasses.dataclass(frozen=True)
class FeedForwardConfig(abc.ABC):
    """Settings of one feed-forward; `kind_name` is what configs write as `kind`.

    `equation` (one line) and `source` (paper and section) say what it computes. `other_names` are
    what papers and other code call it, each with the settings that make it that one, or "".
    """

    kind_name: ClassVar[str]
    equation: ClassVar[str]
    source: ClassVar[str]
    other_names: ClassVar[Mapping[str, str]] = {}
    #: Whether it norms its own input: the block then gives it the residual stream as it is.
    norms_input: ClassVar[bool] = False

    @abc.abstractmethod
    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "FeedForward":
        """The module."""

    @abc.abstractmethod
    def parameters(self, width: int) -> int:
        """Number of parameters in a model of `width`."""

    def active_parameters(self, width: int) -> int:
        """Number of parameters that one token uses: all, except in mixtures of experts."""
        return self.parameters(width)

    @abc.abstractmethod
    def flops_per_token(self, width: int) -> float:
        """FLOPs of the forward pass per token; a multiply-add counts 2, element-wise work 0."""

    @abc.abstractmethod
    def kept_per_token(self, width: int) -> int:
        """Values per token of the hidden-layer arrays that the backward pass reads."""

    def state_bytes(self, width: int, itemsize: int = 2) -> int:
        """Bytes one sequence holds in this layer while it is decoded; 0 without a state."""
        return 0

    @property
    def has_loss(self) -> bool:
        """Whether it adds a loss of its own to the training objective."""
        return False

    @property
    def mechanism(self) -> str:
        """A short description for tables."""
        return self.kind_name


class FeedForward(nnx.Module):
    """The module of a feed-forward; this base class has no loss and no state."""

    @abc.abstractmethod
    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        """The layer's output, from the normed residual stream."""

    def with_loss(self, x_BTD: jax.Array, context: SequenceContext) -> tuple[jax.Array, jax.Array]:
        """The output, and a scalar loss: weighted, and a mean over tokens without padding."""
        return self(x_BTD, context), jnp.float32(0)

    def init_state(self, batch: int, dtype: jnp.dtype) -> Any:
        """The state before the first token."""
        del batch, dtype
        return ()

    def extend(
        self, x_BTD: jax.Array, context: SequenceContext, state: Any
    ) -> tuple[jax.Array, Any]:
        """The output of `__call__` after the tokens in `state`, and the new state."""
        return self(x_BTD, context), state
