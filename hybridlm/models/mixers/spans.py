"""Which keys of its document a causal query sees: all, the last `window`, or its own chunk's.

The attention op takes a span as a window, and segment ids whose changes are boundaries that no
query sees across. Decoding takes it as the number of keys that a query sees.
"""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp

from hybridlm.models.mixers.base import SequenceContext
from hybridlm.settings.bounds import AtLeast
from kernels_pallas import segments

#: Tokens a query attends to.
WindowSize = Annotated[int, AtLeast(1, note="a query's own key counts", none="for full attention")]


@dataclasses.dataclass(frozen=True)
class Window:
    """The last `window` keys, the query's own included; None for the whole document."""

    window: int | None = None

    def segment_ids(self, context: SequenceContext) -> jax.Array:
        """int32 (B, T): the segment ids for the attention op."""
        return context.segment_ids_BT

    def keys_at(self, positions_B: jax.Array) -> int | None:
        """The largest number of keys of its document that a query sees; None for all."""
        return self.window

    def mean_keys(self, seq_len: int) -> float:
        """Keys a query attends to, its own included, averaged over a document."""
        return mean_keys(seq_len, self.window)

    def narrowed(self, window: int) -> "Window":
        """The last `window` of these keys at most."""
        return Window(min(window, self.window or window))

    def __str__(self) -> str:
        return f"window {self.window}" if self.window else "full"


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Keys whose position, divided by `window` and rounded down, equals the query's (Llama 4).

    No chunk holds more than `window` keys, so a window of that many changes no result; it makes
    the op's work linear in time and bounds the cache.
    """

    window: int

    def segment_ids(self, context: SequenceContext) -> jax.Array:
        """int32 (B, T): ids that change wherever a document or a chunk begins, padding still 0.

        An id is 1 plus the index in the row at which its chunk begins. Documents' ids cannot be
        numbered on by chunk: they may be any int32.
        """
        ids_BT = context.segment_ids_BT
        index_1T = jnp.arange(ids_BT.shape[1], dtype=jnp.int32)[None]
        begin_BT = index_1T - context.positions_BT % self.window
        begin_BT = jnp.maximum(segments.first_token_index(ids_BT), begin_BT)
        return jnp.where(ids_BT == 0, 0, 1 + begin_BT)

    def keys_at(self, positions_B: jax.Array) -> jax.Array:
        """The largest number of keys of its document that a query sees."""
        return positions_B % self.window + 1

    def mean_keys(self, seq_len: int) -> float:
        """Keys a query attends to, its own included, averaged over a document."""
        whole, rest = divmod(seq_len, self.window)
        return (whole * self.window * (self.window + 1) + rest * (rest + 1)) / (2 * seq_len)

    def narrowed(self, window: int) -> "WindowInChunk":
        """The last `window` of these keys at most."""
        return WindowInChunk(min(window, self.window), self)

    def __str__(self) -> str:
        return f"chunk {self.window}"


@dataclasses.dataclass(frozen=True)
class WindowInChunk:
    """The last `window` keys of the query's own chunk."""

    window: int
    chunk: Chunk

    def segment_ids(self, context: SequenceContext) -> jax.Array:
        """int32 (B, T): the segment ids for the attention op."""
        return self.chunk.segment_ids(context)

    def keys_at(self, positions_B: jax.Array) -> jax.Array:
        """The largest number of keys of its document that a query sees."""
        return jnp.minimum(self.window, self.chunk.keys_at(positions_B))

    def mean_keys(self, seq_len: int) -> float:
        """Keys a query attends to, its own included, averaged over a document."""
        whole, rest = divmod(seq_len, self.chunk.window)
        keys = whole * self.chunk.window * mean_keys(self.chunk.window, self.window)
        return (keys + rest * mean_keys(max(rest, 1), self.window)) / seq_len

    def narrowed(self, window: int) -> "WindowInChunk":
        """The last `window` of these keys at most."""
        return WindowInChunk(min(window, self.window), self.chunk)

    def __str__(self) -> str:
        return f"window {self.window} in {self.chunk}"


def mean_keys(seq_len: int, window: int | None) -> float:
    """Keys a causal query attends to, its own included, averaged over a sequence."""
    if window is None or window >= seq_len:
        return (seq_len + 1) / 2
    return (window * (window + 1) / 2 + (seq_len - window) * window) / seq_len
