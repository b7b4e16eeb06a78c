"""Sources of kind "megatron": indexed datasets of Megatron-LM.

    PREFIX.bin   the token ids of all sequences, nothing else
    PREFIX.idx   "MMIDIDX\\0\\0", uint64 version (1), uint8 code of the ids' type, uint64 number of
                 sequences S, uint64 length D of the document index; then int32 (S,) lengths, int64
                 (S,) byte offsets in the .bin, int64 (D,) the sequence at which each document
                 begins, then S; multimodal ones end with int8 (S,)

Format: github.com/NVIDIA/Megatron-LM megatron/core/datasets/indexed_dataset.py. All numbers are
little-endian.
"""

import glob
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hybridlm.data.document_index import Documents
from hybridlm.data.files import SourceFile, map_ids, source_files
from hybridlm.data.sources.token_source import TokenSource
from hybridlm.data.store import Opening
from hybridlm.data.token_stream import Segment, TokenStream
from hybridlm.errors import DataError
from hybridlm.settings.bounds import settings
from hybridlm.storage import objects

_MAGIC = b"MMIDIDX\x00\x00"
_HEAD = struct.Struct("<9sQBQQ")
_DTYPES = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
_ENDINGS = (".bin", ".idx")
_DOCUMENTS = 1 << 16  # documents of the index read at once


@settings
class MegatronTokens(TokenSource):
    """Megatron indexed datasets. `path` is a prefix (of PREFIX.bin and PREFIX.idx), a folder of
    them, or a glob of prefixes. A document may be several sequences.
    """

    kind_name = "megatron"

    def files(self, path: str) -> list[SourceFile]:
        """The .idx and the .bin of each dataset, in turn."""
        found = []
        for idx in _index_files(path):
            ids = SourceFile(_bin_name(idx.name), idx.path.with_name(_bin_name(idx.path.name)))
            if not ids.path.is_file():
                raise DataError(f"{ids.path}: is missing beside its .idx")
            found += [idx, ids]
        return found

    def in_bucket(self, url: str) -> tuple[str, tuple[str, ...]]:
        if not glob.has_magic(url) and objects.keys(url):
            return url, ("",)  # a folder
        return _prefix(url), _ENDINGS

    def find(self, path: str) -> list[str]:
        names = super().find(path)
        wanted = {_bin_name(name) for name in names if name.endswith(".idx")}
        if not wanted:
            raise DataError(f"source {path}: there is no .idx file")
        if missing := wanted.difference(names):
            raise DataError(f"source {path}: {min(missing)} is missing beside its .idx")
        return names

    def read_store(self, path: str, opening: Opening) -> Documents:
        files = self.files(path)
        parts = [_read_index(idx.path, ids.path) for idx, ids in zip(files[::2], files[1::2])]
        segments = [
            Segment(map_ids(part.bin, part.dtype), part.bin) for part in parts if part.tokens
        ]
        hint = "; open it with the tokenizer that wrote it"
        stream = TokenStream(segments, opening.tokenizer.vocab_size, hint)
        if not stream.tokens:
            raise DataError(f"source {path}: holds no token")
        return Documents(files, stream, lambda: _ends(parts))


def _prefix(path: str) -> str:
    for suffix in _ENDINGS:
        path = path.removesuffix(suffix)
    return path


def _bin_name(name: str) -> str:
    return f"{name.removesuffix('.idx')}.bin"


def _index_files(path: str) -> list[SourceFile]:
    prefix = _prefix(path)
    if os.path.isdir(os.path.expanduser(path)):
        found = [f for f in source_files(path) if f.name.endswith(".idx")]
        if not found:
            raise DataError(f"source {path}: the folder holds no .idx file")
        return found
    expanded = os.path.expanduser(prefix)
    if not glob.has_magic(prefix) and not os.path.isfile(f"{expanded}.idx"):
        raise DataError(
            f"source {path}: there is no {expanded}.idx; path is the prefix of PREFIX.bin and"
            " PREFIX.idx"
        )
    return source_files(f"{prefix}.idx")


class _Part(NamedTuple):
    """One dataset: its files, its type and the arrays of its index, mapped into memory."""

    idx: Path
    bin: Path
    dtype: np.dtype
    tokens: int
    lengths: np.ndarray
    pointers: np.ndarray
    documents: np.ndarray


def _read_index(idx: Path, ids: Path) -> _Part:
    with open(idx, "rb") as file:
        head = file.read(_HEAD.size)
    if not head.startswith(_MAGIC):
        raise DataError(
            f"{idx}: is not the index of a Megatron dataset (it does not begin with MMIDIDX)"
        )
    if len(head) < _HEAD.size:
        raise DataError(f"{idx}: is truncated ({len(head)} bytes); copy it again")
    _, version, code, sequences, documents = _HEAD.unpack(head)
    if version != 1:
        raise DataError(f"{idx}: has version {version}, this program reads 1")
    if code not in _DTYPES:
        raise DataError(
            f"{idx}: its ids have type code {code}; codes of integers are"
            f" {', '.join(map(str, _DTYPES))}"
        )
    size, needed = idx.stat().st_size, _HEAD.size + 12 * sequences + 8 * documents
    if size not in (needed, needed + sequences):
        what = "truncated" if size < needed else "too long"
        raise DataError(
            f"{idx}: is {what} ({size:,} bytes; {sequences:,} sequences and {documents:,} entries of"
            f" documents need {needed:,}); copy it again"
        )
    dtype, at = _DTYPES[code], _HEAD.size
    lengths = map_ids(idx, np.dtype("<i4"), at, sequences)
    pointers = map_ids(idx, np.dtype("<i8"), at + 4 * sequences, sequences)
    starts = map_ids(idx, np.dtype("<i8"), at + 12 * sequences, documents)
    if documents == 0 or starts[0] != 0 or starts[-1] != sequences:
        raise DataError(
            f"{idx}: its documents do not cover its {sequences:,} sequences; write it again"
        )
    expected = int(pointers[-1]) + int(lengths[-1]) * dtype.itemsize if sequences else 0
    if (actual := ids.stat().st_size) != expected:
        what = "truncated" if actual < expected else "too long"
        raise DataError(
            f"{ids}: is {what} ({actual:,} bytes; its index says {expected:,}); copy it again"
        )
    return _Part(idx, ids, dtype, expected // dtype.itemsize, lengths, pointers, starts)


def _ends(parts: list[_Part]) -> Iterator[np.ndarray]:
    base = 0  # tokens of the parts before
    for part in parts:
        end = 0
        for first in range(0, len(part.documents) - 1, _DOCUMENTS):
            starts = np.asarray(part.documents[first : first + _DOCUMENTS + 1])
            lengths = part.lengths[starts[0] : starts[-1]]
            if (np.diff(starts) < 0).any() or (lengths < 0).any():
                raise DataError(f"{part.idx}: its documents are out of order; write it again")
            ends = end + np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            if (part.pointers[starts[0] : starts[-1]] != ends[:-1] * part.dtype.itemsize).any():
                raise DataError(
                    f"{part.idx}: its sequences do not follow one another in the .bin; write it"
                    " again"
                )
            yield base + ends[starts[1:] - starts[0]]
            end = int(ends[-1])
        base += part.tokens
