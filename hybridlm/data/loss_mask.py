"""Which tokens count as targets: one bit a token, in a file beside a shard's tokens.

Token i is bit i % 8 (the least significant first) of byte i // 8; bits after the last token are 0.
"""

import hashlib
from typing import BinaryIO, NamedTuple

import numpy as np


def mask_bytes(tokens: int) -> int:
    """The size of the file of a shard of `tokens` tokens."""
    return -(-tokens // 8)


class MaskWriter:
    """Appends the bits of documents to an open file."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self._hash, self._rest = hashlib.sha256(), np.zeros(0, bool)

    def add(self, counts: np.ndarray) -> None:
        """Appends bool (tokens,)."""
        bits = np.concatenate([self._rest, counts])
        whole = len(bits) // 8 * 8
        self._rest = bits[whole:]
        self._write(bits[:whole])

    def finish(self) -> str:
        """Writes the last bits; returns the SHA-256 of the file, in hexadecimal."""
        self._write(self._rest)
        return self._hash.hexdigest()

    def _write(self, bits: np.ndarray) -> None:
        data = np.packbits(bits, bitorder="little").tobytes()
        self.file.write(data)
        self._hash.update(data)


class LossMask(NamedTuple):
    """The bits of a split, over all its shards.

    Attributes:
      files: uint8 arrays, one a shard.
      starts: int64 (shards + 1,), the first token of each shard, then the number of tokens.
    """

    files: tuple[np.ndarray, ...]
    starts: np.ndarray

    def read(self, start: int, stop: int) -> np.ndarray:
        """Whether tokens `start` to `stop` count as targets: bool (stop - start,)."""
        counts = np.zeros(stop - start, bool)
        shard = int(np.searchsorted(self.starts, start, side="right")) - 1
        at = start
        while at < stop:
            base, end = int(self.starts[shard]), min(stop, int(self.starts[shard + 1]))
            first = (at - base) // 8
            bits = np.unpackbits(
                self.files[shard][first : mask_bytes(end - base)], bitorder="little"
            )
            skip = at - base - 8 * first
            counts[at - start : end - start] = bits[skip : skip + end - at]
            at, shard = end, shard + 1
        return counts
