"""One split of a token store, read by the index of its documents (`hybridlm.data.document_index`)."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from hybridlm.data.token_stream import TokenStream


@dataclasses.dataclass(frozen=True)
class IndexedSplit:
    """The documents of one split of a token store: a `store.Split`.

    `bytes` are those of the tokens, since the text is not known.
    """

    documents: int
    tokens: int
    bytes: int
    token_bytes: int
    unknown_tokens: int
    _stream: TokenStream
    _starts: np.ndarray
    _offsets: np.ndarray
    _bos: tuple[int, ...]
    _eos: tuple[int, ...]

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens `start` to `stop`: see `Split.read`."""
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens {start} to {stop} of {self.tokens}")
        tokens, begins = np.empty(stop - start, np.int32), np.zeros(stop - start, bool)
        if start == stop:
            return tokens, begins
        first = int(np.searchsorted(self._offsets, start, side="right")) - 1
        last = int(np.searchsorted(self._offsets, stop, side="left"))
        offsets = np.array(self._offsets[first : last + 1])
        begins[offsets[:-1][offsets[:-1] >= start] - start] = True
        for ids, places in ((self._bos, offsets[:-1]), (self._eos, offsets[1:] - 1)):
            if ids:
                tokens[places[(places >= start) & (places < stop)] - start] = ids[0]
        # The part of each document that the store holds, cut to [start, stop).
        body = offsets[:-1] + len(self._bos)
        low = np.clip(body, start, stop)
        high = np.clip(offsets[1:] - len(self._eos), low, stop)
        source = self._starts[first:last] + (low - body)
        for a, b, at in _runs(low, high, source):
            tokens[a - start : b - start] = self._stream.read(at, at + b - a)
        return tokens, begins

    def document_offsets(self) -> np.ndarray:
        """See `Split.document_offsets`; mapped into memory, not read."""
        return self._offsets


def _runs(low: np.ndarray, high: np.ndarray, source: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(low, high, source) with neighbours joined that are neighbours in the source, too."""
    kept = high > low
    low, high, source = low[kept], high[kept], source[kept]
    if not len(low):
        return
    breaks = (low[1:] != high[:-1]) | (source[1:] != source[:-1] + (high - low)[:-1])
    firsts = np.concatenate([[0], np.flatnonzero(breaks) + 1])
    lasts = np.concatenate([firsts[1:], [len(low)]]) - 1
    yield from zip(low[firsts].tolist(), high[lasts].tolist(), source[firsts].tolist())
