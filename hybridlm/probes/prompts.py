"""The prompts of probes: sequences whose end, the answer, repeats an earlier needle."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from hybridlm.models.mixers import SequenceContext

Span = tuple[int, int]  # [first, end), in tokens


class Batch(NamedTuple):
    """A batch of prompts as arrays.

    Attributes:
      tokens_BT, segment_ids_BT, positions_BT: int32, as in a training batch.
      rows_BQ: int32, indices of the tokens that predict the answer's tokens, in order. The first is
        the question's last token; the target of row r is token r + 1. -1 fills shorter answers.
      needle_BT: bool, true for the tokens that the answer repeats.
      window: int32 scalar that narrows attention windows, or None (see `SequenceContext`).
    """

    tokens_BT: jax.Array
    segment_ids_BT: jax.Array
    positions_BT: jax.Array
    rows_BQ: jax.Array
    needle_BT: jax.Array
    window: jax.Array | None = None

    @property
    def context(self) -> SequenceContext:
        ids_BT, positions_BT = self.segment_ids_BT, self.positions_BT
        return SequenceContext(ids_BT, positions_BT, self.window, tokens_BT=self.tokens_BT)


class Prompt(NamedTuple):
    """One document: its tokens (answer included), and the spans of its needles and answer."""

    tokens: np.ndarray
    needles: Sequence[Span]
    answer: Span


@dataclasses.dataclass(frozen=True)
class Prompts:
    """N sequences of T tokens; numpy arrays as in `Batch`.

    Sequences may be packed; rows and needles then belong to one document of each sequence.
    """

    tokens_NT: np.ndarray
    segment_ids_NT: np.ndarray
    positions_NT: np.ndarray
    rows_NQ: np.ndarray
    needle_NT: np.ndarray
    window: int | None = None

    def __post_init__(self):
        shape = self.tokens_NT.shape
        for name in ("segment_ids_NT", "positions_NT", "needle_NT"):
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, tokens {shape}")
        rows = self.rows_NQ
        if rows.ndim != 2 or len(rows) != shape[0] or rows.shape[1] < 1:
            raise ValueError(f"rows_NQ must be (N, Q) with Q >= 1, not {rows.shape}")
        if np.any(rows >= shape[1] - 1):
            raise ValueError("a row of rows_NQ has no next token to predict")

    def __len__(self) -> int:
        return len(self.tokens_NT)

    @classmethod
    def of(cls, prompts: Sequence[Prompt], length: int | None = None) -> "Prompts":
        """One document per sequence, padded at the end to `length` or to the longest document."""
        longest = max(len(p.tokens) for p in prompts)
        length = longest if length is None else length
        if longest > length:
            raise ValueError(f"a prompt has {longest} tokens, more than {length}")
        n, queries = len(prompts), max(end - first for _, _, (first, end) in prompts)
        tokens, ids, positions = np.zeros((3, n, length), np.int32)
        rows, needle = np.full((n, queries), -1, np.int32), np.zeros((n, length), bool)
        for i, (row, needles, (first, end)) in enumerate(prompts):
            tokens[i, : len(row)] = row
            ids[i, : len(row)] = 1
            positions[i, : len(row)] = np.arange(len(row))
            rows[i, : end - first] = np.arange(first - 1, end - 1)
            for a, b in needles:
                needle[i, a:b] = True
        return cls(tokens, ids, positions, rows, needle)

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of `size` sequences; padding fills the last, so that all shapes are equal."""
        arrays = (
            self.tokens_NT,
            self.segment_ids_NT,
            self.positions_NT,
            self.rows_NQ,
            self.needle_NT,
        )
        blank = (0, 0, 0, -1, False)
        window = None if self.window is None else np.int32(self.window)
        for start in range(0, len(self), size):
            parts = [array[start : start + size] for array in arrays]
            missing = ((0, size - len(parts[0])), (0, 0))
            padded = (np.pad(p, missing, constant_values=b) for p, b in zip(parts, blank))
            yield Batch(*padded, window=window)
