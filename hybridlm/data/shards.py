"""Token shards: a folder of token files, written once and read by index.

    manifest.json      format version, tokenizer, source, counts, and every file with its SHA-256
    train-00000.bin    token ids, little-endian uint16 (vocabularies up to 65,536) or uint32
    train-00000.idx    little-endian int64: the token of the .bin at which each document begins,
                       then the number of tokens; a document never spans two shards
    heldout-00000.bin  the same for the documents held out for evaluation
    train-00000.mask   only where not every token counts as a target (`hybridlm.data.loss_mask`)

Each document is stored as BOS + tokens + EOS. Files hold plain numbers or JSON, so opening a folder
executes no code from it. Folders must be local, since their files are memory-mapped.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hybridlm.data.files import partial_folder
from hybridlm.data.loss_mask import LossMask, MaskWriter, mask_bytes
from hybridlm.data.store import SPLITS
from hybridlm.data.tokenizers import Tokenizer
from hybridlm.errors import DataError
from hybridlm.settings.json_text import parse_json
from hybridlm.storage.local_copies import local_copy

FORMAT = "hybridlm-tokens"
VERSION = 2  # version 2 selects held-out documents by a hash of their text
MASKED_VERSION = 3  # version 2 with a file of loss weights beside each shard
MANIFEST = "manifest.json"
SHARD_TOKENS = 1 << 26  # a shard ends after the document that reaches this many tokens
_INDEX_DTYPE = np.dtype("<i8")
_READ = 1 << 24  # bytes read at once for verification


def token_dtype(vocab_size: int) -> np.dtype:
    """The smaller of little-endian uint16 and uint32 that holds every id."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


# --- writing ----------------------------------------------------------------------------------


class ShardWriter:
    """Writes documents into a folder, which exists only once `finish` has completed it.

    Until then the files are in a temporary folder beside it. Use the writer as a context manager:
    an exception removes the temporary folder.

    Args:
      folder: the folder to create; it must not exist.
      tokenizer: provides the vocabulary, BOS and EOS.
      shard_tokens: a shard ends after the document that reaches this many tokens.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, shard_tokens: int = SHARD_TOKENS):
        self.folder, self._tokenizer = Path(folder), tokenizer
        if self.folder.exists():
            raise DataError(f"{self.folder} exists; remove it or name another folder")
        self._dtype, self._shard_tokens = token_dtype(tokenizer.vocab_size), shard_tokens
        self._token_bytes = tokenizer.token_bytes()
        self._bos = np.array([tokenizer.bos_id], self._dtype).tobytes()
        self._eos = np.array([tokenizer.eos_id], self._dtype).tobytes()
        self._counts = {split: _zero_counts() for split in SPLITS}
        self._shards: dict[str, list[dict]] = {split: [] for split in SPLITS}
        self._open: dict[str, _OpenShard] = {}
        self._masked: bool | None = None  # known with the first document
        self.partial = partial_folder(self.folder)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *exception) -> None:
        for shard in self._open.values():
            shard.close()
        shutil.rmtree(self.partial, ignore_errors=True)

    def add(
        self, split: str, ids: np.ndarray, text_bytes: int, counts: np.ndarray | None = None
    ) -> None:
        """Appends a document.

        Args:
          split: "train" or "heldout".
          ids: its tokens (tokens,), without BOS and EOS.
          text_bytes: its size in UTF-8 bytes.
          counts: bool (tokens + 1,), whether each token, and then EOS, counts as a target; None
            where all do. Either every document has them, or none.
        """
        if self._masked is None:
            self._masked = counts is not None
            if self._masked:
                self._counts = {s: c | {"answer_tokens": 0} for s, c in self._counts.items()}
        if self._masked != (counts is not None):
            raise ValueError("either every document has loss weights, or none has")
        if split not in self._open:
            name = f"{split}-{len(self._shards[split]):05d}"
            self._open[split] = _OpenShard(self.partial, name, self._dtype, self._masked)
        shard, summed, tokens = self._open[split], self._counts[split], len(ids) + 2
        shard.add(self._bos + ids.astype(self._dtype).tobytes() + self._eos, tokens)
        summed["documents"] += 1
        summed["tokens"] += tokens
        summed["bytes"] += text_bytes
        summed["token_bytes"] += int(self._token_bytes[ids].sum())
        if self._tokenizer.unk_id is not None:
            summed["unknown_tokens"] += int((ids == self._tokenizer.unk_id).sum())
        if counts is not None:
            shard.add_mask(np.concatenate([[False], counts]))  # BOS is no target
            summed["answer_tokens"] += int(counts.sum())
        if shard.tokens >= self._shard_tokens:
            self._shards[split].append(self._open.pop(split).close())

    def finish(self, source: Mapping[str, Any], heldout_fraction: float) -> Path:
        """Writes the manifest and renames the temporary folder to its final name.

        If another process has created the folder in the meantime, that folder is kept.
        """
        for split, shard in self._open.items():
            self._shards[split].append(shard.close())
        self._open = {}
        manifest = {
            "format": FORMAT,
            "version": MASKED_VERSION if self._masked else VERSION,
            "tokenizer": describe_tokenizer(self._tokenizer),
            "source": source,
            "heldout_fraction": heldout_fraction,
            "dtype": self._dtype.name,
            "splits": {s: {**self._counts[s], "shards": self._shards[s]} for s in SPLITS},
        }
        write_manifest(self.partial, manifest)
        try:
            os.rename(self.partial, self.folder)
        except OSError:
            if not (self.folder / MANIFEST).is_file():
                raise
        return self.folder


class _OpenShard:
    """A .bin and .idx file that are being written."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype, masked: bool):
        self._name, self._folder, self._dtype = name, folder, dtype
        self._file, self._hash = open(folder / f"{name}.bin", "wb"), hashlib.sha256()
        self._mask = MaskWriter(open(folder / f"{name}.mask", "wb")) if masked else None
        self._offsets, self.tokens = [0], 0

    def add(self, data: bytes, tokens: int) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.tokens += tokens
        self._offsets.append(self.tokens)

    def add_mask(self, counts: np.ndarray) -> None:
        self._mask.add(counts)

    def close(self) -> dict[str, Any]:
        _sync(self._file)
        index = np.asarray(self._offsets, _INDEX_DTYPE).tobytes()
        with open(self._folder / f"{self._name}.idx", "wb") as file:
            file.write(index)
            _sync(file)
        mask = {}
        if self._mask is not None:
            mask = {"mask_sha256": self._mask.finish()}
            _sync(self._mask.file)
        return {
            "name": self._name,
            "documents": len(self._offsets) - 1,
            "tokens": self.tokens,
            "bin_bytes": self.tokens * self._dtype.itemsize,
            "idx_bytes": len(index),
            "bin_sha256": self._hash.hexdigest(),
            "idx_sha256": hashlib.sha256(index).hexdigest(),
            **mask,
        }


def _zero_counts() -> dict[str, int]:
    return dict(documents=0, tokens=0, bytes=0, token_bytes=0, unknown_tokens=0)


def _sync(file) -> None:
    if not file.closed:
        file.flush()
        os.fsync(file.fileno())
        file.close()


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer's entry in the manifest."""
    return {
        "kind": tokenizer.kind,
        "fingerprint": tokenizer.fingerprint,
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
    }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes manifest.json with a SHA-256 of its content, and flushes it to disk."""
    content = {**manifest, "sha256": _manifest_sha256(manifest)}
    with open(Path(folder) / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        _sync(file)


def _manifest_sha256(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


# --- reading ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ShardSplit:
    """The documents of one split, concatenated over all its shards: a `store.Split`.

    `tokens` counts each document's BOS and EOS. Where only answers count as targets, `loss_mask`
    has them and `answer_tokens` their number.
    """

    documents: int
    tokens: int
    bytes: int
    token_bytes: int
    unknown_tokens: int
    _bins: tuple[np.ndarray, ...]
    _indices: tuple[np.ndarray, ...]
    _starts: np.ndarray
    loss_mask: LossMask | None = None
    answer_tokens: int | None = None

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens `start` to `stop`: see `Split.read`."""
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens {start} to {stop} of {self.tokens}")
        tokens, begins = np.empty(stop - start, np.int32), np.zeros(stop - start, bool)
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            base, data = int(self._starts[shard]), self._bins[shard]
            end = min(stop, base + len(data))
            out = len(tokens) - (stop - start)
            tokens[out : out + end - start] = data[start - base : end - base]
            index = self._indices[shard]
            first, last = np.searchsorted(index[:-1], (start - base, end - base))
            begins[index[first:last] + (out + base - start)] = True
            start, shard = end, shard + 1
        return tokens, begins

    def document_offsets(self) -> np.ndarray:
        """See `Split.document_offsets`."""
        parts = [index[:-1] + base for index, base in zip(self._indices, self._starts)]
        return np.concatenate([*parts, [self.tokens]]).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Shards:
    """An opened folder: its manifest, and its splits "train" and "heldout"."""

    folder: Path
    manifest: dict[str, Any]
    train: ShardSplit
    heldout: ShardSplit

    @property
    def sha256(self) -> str:
        """SHA-256 of the manifest, which covers text, tokenizer and tokens."""
        return self.manifest["sha256"]

    @property
    def heldout_fraction(self) -> float:
        return self.manifest["heldout_fraction"]


def open_shards(folder: str | Path, *, tokenizer: Tokenizer, verify: str = "checksum") -> Shards:
    """Checks a folder of shards and memory-maps its files.

    Args:
      folder: a folder written by `tokenize`.
      tokenizer: the tokenizer that wrote it; kind and fingerprint must match.
      verify: "checksum" reads every file once, checks its SHA-256 and that every id is in the
        vocabulary; "size" checks only sizes and the document index.

    Raises:
      DataError: for a missing, truncated or corrupt file, an edited manifest, another format
        version or tokenizer.
    """
    folder = Path(os.path.expanduser(local_copy(folder)))
    manifest = read_manifest(folder)
    written, given = manifest["tokenizer"], describe_tokenizer(tokenizer)
    if written != given:
        key = next(key for key in given if written.get(key) != given[key])
        raise DataError(
            f"{folder}: was written by another tokenizer ({key} {written.get(key)!r}, "
            f"not {given[key]!r}); open it with that tokenizer or tokenize the source again"
        )
    dtype = token_dtype(tokenizer.vocab_size)
    splits = {
        split: _open_split(folder, split, manifest["splits"][split], dtype, tokenizer, verify)
        for split in SPLITS
    }
    if manifest["version"] == MASKED_VERSION:
        for name, split in splits.items():
            mask = _open_mask(folder, manifest["splits"][name], split, verify)
            answers = manifest["splits"][name]["answer_tokens"]
            splits[name] = dataclasses.replace(split, loss_mask=mask, answer_tokens=answers)
    return Shards(folder, manifest, **splits)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Reads the manifest of a folder of shards; checks its version and that it is unedited."""
    folder = Path(os.path.expanduser(folder))
    path = folder / MANIFEST
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of token shards")
    if not path.is_file():
        raise DataError(
            f"{folder}: {MANIFEST} is missing, so this is not a complete folder of token shards; "
            "remove it and run `hybridlm tokenize` again"
        )
    return checked_manifest(path.read_bytes(), path)


def checked_manifest(content: bytes, path: Path | str) -> dict[str, Any]:
    """The manifest in a file's content; checks its version and that it is unedited.

    Raises:
      DataError: if it is no such manifest; one sentence that begins with `path`.
    """
    try:
        manifest = parse_json(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: malformed JSON ({error}); copy the folder again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path}: is not a manifest of token shards (format {FORMAT!r})")
    if manifest.get("version") not in (VERSION, MASKED_VERSION):
        raise DataError(
            f"{path}: has format version {manifest.get('version')}, this program reads {VERSION} "
            f"and {MASKED_VERSION}; run `hybridlm tokenize` again"
        )
    if manifest.get("sha256") != _manifest_sha256(manifest):
        raise DataError(
            f"{path}: was changed after it was written (its SHA-256 differs); copy the folder again"
        )
    return manifest


def shard_names(manifest: Mapping[str, Any]) -> list[str]:
    """The names of the files beside a manifest."""
    suffixes = ("bin", "idx", "mask") if manifest["version"] == MASKED_VERSION else ("bin", "idx")
    shards = [shard["name"] for split in SPLITS for shard in manifest["splits"][split]["shards"]]
    return [f"{name}.{suffix}" for name in shards for suffix in suffixes]


def _open_split(
    folder: Path, split: str, entry: dict, dtype: np.dtype, tokenizer: Tokenizer, verify: str
) -> ShardSplit:
    bins, indices, starts = [], [], [0]
    for shard in entry["shards"]:
        data = _map_file(folder / f"{shard['name']}.bin", shard["bin_bytes"], dtype)
        index = _map_file(folder / f"{shard['name']}.idx", shard["idx_bytes"], _INDEX_DTYPE)
        if verify == "checksum":
            path = folder / f"{shard['name']}.bin"
            _check_file(path, data, shard["bin_sha256"], tokenizer.vocab_size)
            _check_file(folder / f"{shard['name']}.idx", index, shard["idx_sha256"], None)
        # Each document has at least two tokens: BOS and EOS.
        if (
            len(index) != shard["documents"] + 1
            or index[0] != 0
            or index[-1] != len(data)
            or len(data) != shard["tokens"]
            or (np.diff(index) < 2).any()
        ):
            raise DataError(
                f"{folder / shard['name']}.idx: does not match the documents in its .bin; "
                "copy the folder again"
            )
        bins.append(data)
        indices.append(index)
        starts.append(starts[-1] + len(data))
    counts = {key: entry[key] for key in _zero_counts()}
    summed = sum(shard["documents"] for shard in entry["shards"])
    if counts["tokens"] != starts[-1] or counts["documents"] != summed:
        raise DataError(f"{folder}: the counts of split {split!r} do not match its shards")
    starts = np.asarray(starts[:-1], np.int64)
    return ShardSplit(**counts, _bins=tuple(bins), _indices=tuple(indices), _starts=starts)


def _open_mask(folder: Path, entry: dict, split: ShardSplit, verify: str) -> LossMask:
    files = []
    for shard in entry["shards"]:
        path = folder / f"{shard['name']}.mask"
        files.append(_map_file(path, mask_bytes(shard["tokens"]), np.dtype(np.uint8)))
        if verify == "checksum":
            _check_file(path, files[-1], shard["mask_sha256"], None)
    return LossMask(tuple(files), np.asarray([*split._starts, split.tokens], np.int64))


def _map_file(path: Path, size: int, dtype: np.dtype) -> np.ndarray:
    if not path.is_file():
        raise DataError(f"{path}: the shard is missing; copy the folder again")
    actual = path.stat().st_size
    if actual != size:
        what = "truncated" if actual < size else "too long"
        raise DataError(
            f"{path}: the shard is {what} ({actual} bytes, the manifest says {size}); "
            "copy the folder again"
        )
    return np.asarray(np.memmap(path, dtype, mode="r"))  # slicing a plain array is faster


def _check_file(path: Path, data: np.ndarray, sha256: str, vocab_size: int | None) -> None:
    found, step, largest = hashlib.sha256(), _READ // data.itemsize, 0
    for start in range(0, len(data), step):
        chunk = data[start : start + step]
        found.update(chunk)
        if vocab_size is not None:
            largest = max(largest, int(chunk.max()))
    if found.hexdigest() != sha256:
        raise DataError(
            f"{path}: the shard is corrupt (its SHA-256 differs from the manifest); "
            "copy the folder again"
        )
    if vocab_size is not None and largest >= vocab_size:
        raise DataError(
            f"{path}: holds token {largest}, outside the tokenizer's vocabulary of {vocab_size}"
        )
