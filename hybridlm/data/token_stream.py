"""Token ids in several files as one stream, memory-mapped and checked against the vocabulary."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hybridlm.errors import DataError


class Segment(NamedTuple):
    """A part of a stream: token ids (tokens,) of any integer type, and the file that holds them.

    Attributes:
      offset: tokens of the file that stand before `ids`, for messages.
    """

    ids: np.ndarray
    file: Path
    offset: int = 0


class TokenStream:
    """Segments one after the other, read by index; the ids are copied only where they are read.

    Args:
      segments: in the order of the stream.
      vocab_size: every id read must be in [0, vocab_size).
      hint: the end of the error about an id outside the vocabulary: what may have gone wrong.

    Attributes:
      tokens: the number of tokens of all segments.
    """

    def __init__(self, segments: Iterable[Segment], vocab_size: int, hint: str = ""):
        self._segments = [s for s in segments if len(s.ids)]
        sizes = [len(s.ids) for s in self._segments]
        self._starts = np.cumsum([0, *sizes], dtype=np.int64)
        self._vocab_size, self._hint = vocab_size, hint
        self.tokens = int(self._starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop`, int32 (stop - start,).

        Raises:
          DataError: if one is outside the vocabulary; it names the file and the token's place.
        """
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens {start} to {stop} of {self.tokens}")
        tokens = np.empty(stop - start, np.int32)
        number, at = int(np.searchsorted(self._starts, start, side="right")) - 1, start
        while at < stop:
            base, segment = int(self._starts[number]), self._segments[number]
            end = min(stop, int(self._starts[number + 1]))
            ids = segment.ids[at - base : end - base]
            if ids.max() >= self._vocab_size or ids.min() < 0:
                raise self._outside(segment, at - base, ids)
            tokens[at - start : end - start] = ids
            at, number = end, number + 1
        return tokens

    def _outside(self, segment: Segment, start: int, ids: np.ndarray) -> DataError:
        first = int(np.flatnonzero((ids >= self._vocab_size) | (ids < 0))[0])
        place = segment.offset + start + first
        return DataError(
            f"{segment.file}: token {place:,} is {ids[first]}, outside the tokenizer's vocabulary"
            f" of {self._vocab_size}{self._hint}"
        )
