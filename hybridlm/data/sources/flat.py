"""Sources of kind "flat": files of token ids and nothing else but, sometimes, a header.

    raw        nanoGPT: uint16 or uint32
    llm.c      256 int32 (magic number, version, number of tokens, zeros), then uint16 (magic
               20240520) or uint32 (magic 20240801); modded-nanogpt writes the first, too
    .npy       build-nanogpt: a one-dimensional array of numpy

Formats: github.com/karpathy/nanoGPT data/*/prepare.py; github.com/karpathy/llm.c
dev/data/data_common.py and dev/data/fineweb.py.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from hybridlm.data.document_index import Documents
from hybridlm.data.files import map_ids, source_files
from hybridlm.data.shards import token_dtype
from hybridlm.data.sources.token_source import TokenSource
from hybridlm.data.store import Opening
from hybridlm.data.token_stream import Segment, TokenStream
from hybridlm.errors import DataError
from hybridlm.settings.bounds import AtLeast, NonNegativeInt, settings

_HEADER_BYTES = 1024
_MAGIC = {20240520: np.dtype("<u2"), 20240801: np.dtype("<u4")}
#: The header as numpy writes it: a dict of Python, which is not evaluated here.
_NPY = (
    rb"\{'descr': '(?P<dtype>[<|][iu][1248])', 'fortran_order': (?:True|False),"
    rb" 'shape': \((?P<count>\d{1,18}),\), \}\s*"
)
_VERSIONS = (1, 7)  # llm.c writes version 7 for Llama 3, and other writers of that magic 1
_BLOCK = 1 << 22  # tokens searched at once


@settings
class FlatTokens(TokenSource):
    """Flat files of token ids, as nanoGPT, llm.c, modded-nanogpt and build-nanogpt write them: raw,
    with llm.c's header, or .npy. The files are one stream, in the order of their names; a document
    may go on in the next file.

    Attributes:
      eot_id: the id between documents; None takes the tokenizer's EOS.
      eot: where that id stands: at the "end" of each document (nanoGPT) or at its "begin"
        (llm.c, modded-nanogpt, build-nanogpt).
      dtype: type of the ids; "auto" takes the header's, and in raw files uint16 for vocabularies up
        to 65,536 and uint32 for larger ones.
      header_bytes: bytes before the ids; None knows llm.c's header and .npy, and takes all other
        files as raw.
    """

    kind_name = "flat"

    eot_id: Annotated[int, AtLeast(0, none="to take the tokenizer's EOS")] | None = None
    eot: Literal["end", "begin"] = "end"
    dtype: Literal["auto", "uint16", "uint32", "int32", "int64"] = "auto"
    header_bytes: NonNegativeInt | None = None

    def format_settings(self) -> dict[str, Any]:
        keys = ("eot_id", "eot", "dtype", "header_bytes")
        return super().format_settings() | {key: getattr(self, key) for key in keys}

    def read_store(self, path: str, opening: Opening) -> Documents:
        tokenizer = opening.tokenizer
        eot_id = tokenizer.eos_id if self.eot_id is None else self.eot_id
        if eot_id >= tokenizer.vocab_size:
            raise DataError(
                f"eot_id is {eot_id}, outside the tokenizer's vocabulary of {tokenizer.vocab_size}"
            )
        files = source_files(path)
        segments = [Segment(self._ids(f.path, tokenizer.vocab_size), f.path) for f in files]
        hint = "; set dtype, header_bytes or data.tokenizer to what the file was written with"
        stream = TokenStream(segments, tokenizer.vocab_size, hint)
        if not stream.tokens:
            raise DataError(f"source {path}: holds no token")
        return Documents(files, stream, lambda: self._ends(path, stream, eot_id))

    def _ids(self, path: Path, vocab_size: int) -> np.ndarray:
        size = path.stat().st_size
        layout = self._layout(path, size, vocab_size)
        if layout.offset > size or (size - layout.offset) % layout.dtype.itemsize:
            raise DataError(
                f"{path}: has {size:,} bytes, which are not {layout.offset:,} bytes of header and"
                f" whole ids of {layout.dtype.name}; copy it again, or set dtype or header_bytes"
            )
        ids = map_ids(path, layout.dtype, layout.offset)
        if layout.count is None and not len(ids):
            raise DataError(
                f"{path}: holds no token in its {size:,} bytes; copy it again, or remove it"
            )
        if layout.count not in (None, len(ids)):
            raise DataError(
                f"{path}: its header says {layout.count:,} tokens, and it holds {len(ids):,}; copy"
                " it again"
            )
        if self.dtype == "auto" and layout.count is None and layout.dtype.itemsize == 2:
            head = ids[: 2 * (min(len(ids), 1 << 16) // 2)]
            if len(head) >= 64 and not head[1::2].any() and head[0::2].any():
                raise DataError(
                    f"{path}: every second uint16 is 0, as in a file of uint32: set"
                    ' dtype="uint32" (or "uint16", if that is meant)'
                )
        return ids

    def _layout(self, path: Path, size: int, vocab_size: int) -> "_Layout":
        own = None if self.dtype == "auto" else np.dtype(self.dtype).newbyteorder("<")
        if self.header_bytes is not None:
            return _Layout(own or token_dtype(vocab_size), self.header_bytes, None)
        with open(path, "rb") as file:
            head = file.read(_HEADER_BYTES)
        layout = _npy_layout(path, head) or _llmc_layout(path, head, size)
        if layout is None:
            return _Layout(own or token_dtype(vocab_size), 0, None)
        if own not in (None, layout.dtype):
            raise DataError(f"{path}: holds {layout.dtype.name}, and dtype is {self.dtype!r}")
        return layout

    def _ends(self, path: str, stream: TokenStream, eot_id: int) -> Iterator[np.ndarray]:
        last = 0
        for start in range(0, stream.tokens, _BLOCK):
            block = stream.read(start, min(start + _BLOCK, stream.tokens))
            ends = np.flatnonzero(block == eot_id) + start + (self.eot == "end")
            if len(ends := ends[ends > last]):
                last = int(ends[-1])
                yield ends
        if not last and self.heldout_path is None:
            raise DataError(
                f"source {path}: no token is {eot_id}, so that it is a single document and none can"
                " be held out: set eot_id to the id between documents, or heldout_path"
            )
        if last < stream.tokens:  # the last document has no end of its own
            yield np.array([stream.tokens])


class _Layout(NamedTuple):
    """Type of the ids, bytes before them, and their number where the file tells it."""

    dtype: np.dtype
    offset: int
    count: int | None


def _llmc_layout(path: Path, head: bytes, size: int) -> _Layout | None:
    if len(head) < 12:
        return None
    magic, version, count = np.frombuffer(head[:12], "<i4").tolist()
    if magic in _MAGIC and (version in _VERSIONS or not any(head[12:])):
        if version not in _VERSIONS or len(head) < _HEADER_BYTES:
            raise DataError(
                f"{path}: its header is of version {version} and {len(head):,} bytes; llm.c's has"
                f" version 1 or 7 and {_HEADER_BYTES:,} bytes; set header_bytes if the file is raw"
            )
        return _Layout(_MAGIC[magic], _HEADER_BYTES, count)
    body = size - _HEADER_BYTES
    if len(head) == _HEADER_BYTES and count > 0 and body in (2 * count, 4 * count):
        raise DataError(
            f"{path}: seems to have a header of {_HEADER_BYTES:,} bytes with the unknown magic"
            f" number {magic}: set header_bytes={_HEADER_BYTES} (or 0, if it has none)"
        )
    return None


def _npy_layout(path: Path, head: bytes) -> _Layout | None:
    if not head.startswith(b"\x93NUMPY"):
        return None
    start = {1: 10, 2: 12}.get(head[6])  # the size of the header is a uint16 or a uint32
    if start is None or len(head) < start:
        raise DataError(f"{path}: not a readable .npy file; copy it again")
    size = int.from_bytes(head[8:start], "little")
    header = head[start : start + size]
    found = re.fullmatch(_NPY, header)
    if found is None or len(header) < size:
        raise DataError(
            f"{path}: not a .npy file of integers in one dimension (its header is"
            f" {header[:60].decode('latin-1').strip()!r})"
        )
    dtype = np.dtype(found["dtype"].decode())
    return _Layout(dtype, start + size, int(found["count"]))
