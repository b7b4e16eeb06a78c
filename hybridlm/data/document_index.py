"""The documents of a token store that another program wrote, in our two splits, without a copy.

An index is a folder of the token cache, written once, at the first opening, from one pass over the
store: it checks every id, hashes every document and assigns it to a split.

    index.json       what the index depends on, counts, and the SHA-256 of the documents
    train.starts     little-endian int64: the token of the store's stream where each document begins
    train.offsets    little-endian int64: the token of the split where it begins, then the split's
                     tokens; a document has its own tokens, and BOS or EOS where they are added
    heldout.starts   the same for the documents held out

Reading maps these files into memory: it needs memory neither for the tokens nor for the index.
A store's files are known by name, size and time of change: an index of other files is not used. A
sample of the tokens is hashed again at every opening, all of them in a small store.
"""

import array
import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from hybridlm.data.files import SourceFile, map_ids, new_folder
from hybridlm.data.indexed_split import IndexedSplit
from hybridlm.data.shards import describe_tokenizer
from hybridlm.data.store import SPLITS, Opening
from hybridlm.data.token_stream import TokenStream
from hybridlm.data.tokenization import Splitter
from hybridlm.data.tokenizers import Tokenizer
from hybridlm.errors import DataError
from hybridlm.settings.json_text import parse_json
from hybridlm.storage.writing import writing

VERSION = 1
MANIFEST = "index.json"
_INT64 = np.dtype("<i8")
_BLOCK = 1 << 22  # tokens read at once
_PENDING = 1 << 14  # documents written at once
_SAMPLES, _SAMPLE = 64, 4096  # parts of a stream, and their tokens, hashed at every opening
_log = logging.getLogger(__name__)


class Documents(NamedTuple):
    """What a format knows of its files.

    Attributes:
      files: all that the tokens depend on.
      stream: the tokens of all documents, one document after the other.
      ends: yields the token at which each document ends, int64 arrays in ascending order, the last
        of them `stream.tokens`. Equal ends are documents without a token.
    """

    files: Sequence[SourceFile]
    stream: TokenStream
    ends: Callable[[], Iterable[np.ndarray]]


class Specials(NamedTuple):
    """Whether every document gets a BOS before its tokens, and an EOS after them."""

    bos: bool
    eos: bool


@dataclasses.dataclass(frozen=True)
class IndexedStore:
    """An opened token store: a `store.TokenStore`.

    Attributes:
      folder: of the index.
      sha256: of the documents, the tokenizer and the settings of the splits; copies of the files
        with other names or times have the same.
    """

    folder: Path
    sha256: str
    heldout_fraction: float | None
    train: IndexedSplit
    heldout: IndexedSplit


def open_indexed(
    opening: Opening,
    documents: Documents,
    heldout: Documents | None,
    specials: Specials,
    settings: dict[str, Any],
) -> IndexedStore:
    """Opens a token store with its index; writes the index if there is none of these files.

    Args:
      documents: of the store; `Splitter` assigns them to the splits by a hash of their tokens.
      heldout: if given, these are held out, and all of `documents` are trained on.
      settings: of the format, which the ends of the documents depend on.

    Raises:
      DataError: for an id outside the vocabulary, or an index that was changed.
    """
    fraction = opening.heldout_fraction if heldout is None else None
    expected = {
        "version": VERSION,
        "settings": settings,
        "specials": specials._asdict(),
        "files": _describe(documents.files),
        "heldout_files": None if heldout is None else _describe(heldout.files),
        "heldout_fraction": fraction,
        "tokenizer": describe_tokenizer(opening.tokenizer),
    }
    digest = hashlib.sha256(
        json.dumps(expected, sort_keys=True, allow_nan=False).encode()
    ).hexdigest()
    folder = opening.folder(digest)
    if not folder.exists():
        _log.info(
            "indexing %s (%s tokens) into %s", opening.name, f"{documents.stream.tokens:,}", folder
        )
        _write(folder, expected, documents, heldout, specials, fraction, opening.tokenizer)
    manifest = _read_manifest(folder, expected)
    if manifest["sample"] != _sample(documents, heldout):
        raise DataError(
            f"{folder}: its files have other tokens than when the index was written, and the same"
            " size and time of change; put them back, or remove the folder"
        )
    streams = {"train": documents.stream, "heldout": (heldout or documents).stream}
    splits = {
        split: _open_split(
            folder, split, manifest["splits"][split], streams[split], specials, opening
        )
        for split in SPLITS
    }
    return IndexedStore(folder, manifest["documents_sha256"], fraction, **splits)


def _describe(files: Sequence[SourceFile]) -> list[dict[str, Any]]:
    found = []
    for file in files:
        stat = file.path.stat()
        found.append({"name": file.name, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns})
    return found


# --- writing ----------------------------------------------------------------------------------


def _write(
    folder: Path,
    expected: dict[str, Any],
    documents: Documents,
    heldout: Documents | None,
    specials: Specials,
    fraction: float | None,
    tokenizer: Tokenizer,
) -> None:
    with writing(folder), new_folder(folder) as partial, contextlib.ExitStack() as files:
        writers = {
            split: _SplitWriter(
                {p: files.enter_context(open(partial / f"{split}.{p}", "wb")) for p in _PARTS},
                sum(specials),
            )
            for split in SPLITS
        }
        if heldout is None:
            splitter = Splitter(fraction)
            digest = _scan(documents, lambda d: writers[splitter.split_of(d)], tokenizer)
        else:
            digest = _scan(documents, lambda d: writers["train"], tokenizer)
            digest += _scan(heldout, lambda d: writers["heldout"], tokenizer)
        splits = {split: writer.close() for split, writer in writers.items()}
        covered = {key: expected[key] for key in ("specials", "tokenizer", "heldout_fraction")}
        text = json.dumps({**covered, "documents": digest}, sort_keys=True, allow_nan=False)
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        manifest = {
            **expected,
            "splits": splits,
            "documents_sha256": sha256,
            "sample": _sample(documents, heldout),
        }
        (partial / MANIFEST).write_text(
            json.dumps(manifest, indent=1, allow_nan=False), encoding="utf-8"
        )


class _SplitWriter:
    """Writes the index of one split, document by document."""

    def __init__(self, files: dict[str, BinaryIO], added: int):
        self._files = files
        self._hashes = {part: hashlib.sha256() for part in _PARTS}
        self._added = added
        self._pending = {part: array.array("q") for part in _PARTS}
        self._pending["offsets"].append(0)
        self.counts = dict(documents=0, tokens=0, token_bytes=0, unknown_tokens=0)

    def add(self, start: int, length: int, token_bytes: int, unknown: int) -> None:
        counts = self.counts
        counts["documents"] += 1
        counts["tokens"] += length + self._added
        counts["token_bytes"] += token_bytes
        counts["unknown_tokens"] += unknown
        self._pending["starts"].append(start)
        self._pending["offsets"].append(counts["tokens"])
        if len(self._pending["starts"]) >= _PENDING:
            self._flush()

    def _flush(self) -> None:
        for part, values in self._pending.items():
            data = np.frombuffer(values, np.int64).astype(_INT64).tobytes()
            self._files[part].write(data)
            self._hashes[part].update(data)
            del values[:]

    def close(self) -> dict[str, Any]:
        self._flush()
        for file in self._files.values():
            file.close()
        sums = {f"{part}_sha256": found.hexdigest() for part, found in self._hashes.items()}
        return {**self.counts, **sums}


_PARTS = ("starts", "offsets")


def _scan(
    documents: Documents, writer_of: Callable[[bytes], _SplitWriter], tokenizer: Tokenizer
) -> str:
    """Reads every token once; returns the SHA-256 of all documents, in hexadecimal."""
    sizes, unk = tokenizer.token_bytes(), tokenizer.unk_id
    whole, start = hashlib.sha256(), 0
    for ends in documents.ends():
        for group in _groups(ends, start):
            stop = int(group[-1])
            if stop - start > _BLOCK:  # a single document
                digest, size, unknown = _long_document(documents.stream, start, stop, sizes, unk)
                writer_of(digest).add(start, stop - start, size, unknown)
                whole.update(digest)
            elif stop > start:
                tokens = documents.stream.read(start, stop)
                data = _bytes(tokens)
                bounds = np.unique(np.concatenate([[start], group])) - start  # without empty ones
                summed = np.add.reduceat(sizes[tokens], bounds[:-1], dtype=np.int64).tolist()
                unknown = [0] * len(summed)
                if unk is not None:
                    unknown = np.add.reduceat(tokens == unk, bounds[:-1], dtype=np.int64).tolist()
                places = bounds.tolist()
                for first, last, *counts in zip(places, places[1:], summed, unknown):
                    digest = _digest(data[4 * first : 4 * last])
                    writer_of(digest).add(start + first, last - first, *counts)
                    whole.update(digest)
            start = stop
    if start != documents.stream.tokens:
        raise AssertionError(f"documents end at {start} of {documents.stream.tokens} tokens")
    return whole.hexdigest()


def _groups(ends: np.ndarray, start: int) -> Iterator[np.ndarray]:
    """Cuts ends into groups of at most _BLOCK tokens, or of one longer document."""
    first = 0
    while first < len(ends):
        last = int(np.searchsorted(ends, start + _BLOCK, side="right"))
        last = max(last, first + 1)
        yield ends[first:last]
        start, first = int(ends[last - 1]), last


def _bytes(tokens: np.ndarray) -> memoryview:
    """The tokens as little-endian int32."""
    return memoryview(tokens.astype("<i4", copy=False)).cast("B")


def _digest(data: memoryview) -> bytes:
    """As `tokenization.text_digest`, of the tokens as little-endian int32."""
    return hashlib.blake2b(data, digest_size=16).digest()


def _sample(documents: Documents, heldout: Documents | None) -> str:
    """SHA-256 of parts of the tokens, spread evenly over each stream."""
    found = hashlib.sha256()
    for stream in [d.stream for d in (documents, heldout) if d is not None]:
        starts = np.linspace(0, max(stream.tokens - _SAMPLE, 0), _SAMPLES).astype(np.int64)
        if stream.tokens <= _SAMPLES * _SAMPLE:
            starts = np.arange(0, stream.tokens, _SAMPLE)
        for start in starts.tolist():
            found.update(_bytes(stream.read(start, min(start + _SAMPLE, stream.tokens))))
    return found.hexdigest()


def _long_document(
    stream: TokenStream, start: int, stop: int, sizes: np.ndarray, unk: int | None
) -> tuple[bytes, int, int]:
    found, size, unknown = hashlib.blake2b(digest_size=16), 0, 0
    for at in range(start, stop, _BLOCK):
        tokens = stream.read(at, min(at + _BLOCK, stop))
        found.update(_bytes(tokens))
        size += int(sizes[tokens].sum(dtype=np.int64))
        unknown += int((tokens == unk).sum()) if unk is not None else 0
    return found.digest(), size, unknown


# --- reading ----------------------------------------------------------------------------------


def _read_manifest(folder: Path, expected: dict[str, Any]) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = parse_json(path.read_bytes())
        same = {key: manifest[key] for key in expected} == expected and "sample" in manifest
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        same = False
    if not same:
        raise DataError(f"{folder}: is not a whole index of these files; remove the folder")
    return manifest


def _open_split(
    folder: Path,
    split: str,
    entry: dict[str, Any],
    stream: TokenStream,
    specials: Specials,
    opening: Opening,
) -> IndexedSplit:
    arrays = {}
    for part, count in (("starts", entry["documents"]), ("offsets", entry["documents"] + 1)):
        path = folder / f"{split}.{part}"
        size = path.stat().st_size if path.is_file() else -1
        if size != count * _INT64.itemsize:
            raise DataError(f"{path}: is missing or truncated; remove the folder")
        numbers = map_ids(path, _INT64)
        if opening.verify == "checksum" and _sha256(numbers) != entry[f"{part}_sha256"]:
            raise DataError(f"{path}: is corrupt (its SHA-256 differs); remove the folder")
        arrays[part] = numbers
    tokenizer = opening.tokenizer
    return IndexedSplit(
        documents=entry["documents"],
        tokens=entry["tokens"],
        bytes=entry["token_bytes"],
        token_bytes=entry["token_bytes"],
        unknown_tokens=entry["unknown_tokens"],
        _stream=stream,
        _starts=arrays["starts"],
        _offsets=arrays["offsets"],
        _bos=(tokenizer.bos_id,) * specials.bos,
        _eos=(tokenizer.eos_id,) * specials.eos,
    )


def _sha256(numbers: np.ndarray) -> str:
    found = hashlib.sha256()
    for start in range(0, len(numbers), 1 << 20):
        found.update(numbers[start : start + (1 << 20)])
    return found.hexdigest()
