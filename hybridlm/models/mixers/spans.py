"""Which keys of its document a causal query sees: all, a window of the last, or its own chunk.

A span turns into two things that the attention op already knows: a window, and segment ids
whose changes are the boundaries that no query looks across. Of one query it is a number of keys.
"""

import dataclasses

import jax
import jax.numpy as jnp

from hybridlm.models.mixers.base import SequenceContext
from kernels_pallas import segments


@dataclasses.dataclass(frozen=True)
class Window:
    """The last `window` keys, the query's own included; None for the whole document."""

    window: int | None = None

    def segment_ids(self, context: SequenceContext) -> jax.Array:
        """int32 (B, T), the ids to attend within."""
        return context.segment_ids_BT

    def keys_at(self, positions_B: jax.Array) -> int | None:
        """How many keys of its document a query sees at most, None for all."""
        return self.window

    def mean_keys(self, seq_len: int) -> float:
        """Keys a query attends to, its own included, averaged over a document."""
        return mean_keys(seq_len, self.window)

    def narrowed(self, window: int) -> "Window":
        """No more than `window` of these keys."""
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

        They count from 1 where in the row the chunk begins: ids of documents, which may be any
        int32, have no room for the chunk.
        """
        ids_BT = context.segment_ids_BT
        index_1T = jnp.arange(ids_BT.shape[1], dtype=jnp.int32)[None]
        begin_BT = index_1T - context.positions_BT % self.window
        begin_BT = jnp.maximum(segments.first_token_index(ids_BT), begin_BT)
        return jnp.where(ids_BT == 0, 0, 1 + begin_BT)

    def keys_at(self, positions_B: jax.Array) -> jax.Array:
        """How many keys of its document a query sees at most."""
        return positions_B % self.window + 1

    def mean_keys(self, seq_len: int) -> float:
        """Keys a query attends to, its own included, averaged over a document."""
        whole, rest = divmod(seq_len, self.window)
        return (whole * self.window * (self.window + 1) + rest * (rest + 1)) / (2 * seq_len)

    def narrowed(self, window: int) -> "WindowInChunk":
        """No more than `window` of these keys, the last."""
        return WindowInChunk(min(window, self.window), self)

    def __str__(self) -> str:
        return f"chunk {self.window}"


@dataclasses.dataclass(frozen=True)
class WindowInChunk:
    """The last `window` keys of the query's own chunk."""

    window: int
    chunk: Chunk

    def segment_ids(self, context: SequenceContext) -> jax.Array:
        """int32 (B, T), the ids to attend within."""
        return self.chunk.segment_ids(context)

    def keys_at(self, positions_B: jax.Array) -> jax.Array:
        """How many keys of its document a query sees at most."""
        return jnp.minimum(self.window, self.chunk.keys_at(positions_B))

    def mean_keys(self, seq_len: int) -> float:
        """Keys a query attends to, its own included, averaged over a document."""
        whole, rest = divmod(seq_len, self.chunk.window)
        keys = whole * self.chunk.window * mean_keys(self.chunk.window, self.window)
        return (keys + rest * mean_keys(max(rest, 1), self.window)) / seq_len

    def narrowed(self, window: int) -> "WindowInChunk":
        """No more than `window` of these keys, the last."""
        return WindowInChunk(min(window, self.window), self.chunk)

    def __str__(self) -> str:
        return f"window {self.window} in {self.chunk}"


def mean_keys(seq_len: int, window: int | None) -> float:
    """Keys a causal query attends to, its own included, averaged over a sequence."""
    if window is None or window >= seq_len:
        return (seq_len + 1) / 2
    return (window * (window + 1) / 2 + (seq_len - window) * window) / seq_len
