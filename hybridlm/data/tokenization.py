"""Tokenizes text into shards, in parallel; the files do not depend on the number of processes."""

import collections
import concurrent.futures
import functools
import hashlib
import itertools
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from hybridlm.data.examples import Encoded, Example
from hybridlm.data.shards import SHARD_TOKENS, ShardWriter
from hybridlm.data.source import TextReader
from hybridlm.data.tokenizers import Tokenizer, open_kind
from hybridlm.errors import DataError
from hybridlm.storage import is_remote, objects, open_path
from hybridlm.storage.local_copies import upload_folder
from hybridlm.storage.writing import writing

_CHUNK_CHARS = 1 << 20  # characters of text sent to a process at once
_CHUNK_DOCUMENTS = 4096


def tokenize(
    source: TextReader,
    tokenizer: Tokenizer,
    folder: str | Path,
    heldout_fraction: float,
    processes: int = 1,
    *,
    shard_tokens: int = SHARD_TOKENS,
) -> Path:
    """Writes a raw-text source as token shards (`hybridlm.data.shards`).

    This process reads the documents in order; a pool of spawned processes encodes them. At most two
    chunks of text per process are in memory, so memory does not grow with the source.

    Args:
      source: a source of text.
      tokenizer: the result of `open_tokenizer`.
      folder: the folder to create; it must not exist, and exists only once it is complete. That of
        a bucket is written on this machine first.
      heldout_fraction: share of documents held out for evaluation, see `Splitter`.
      processes: number of encoding processes; 1 encodes in this process.
      shard_tokens: a shard ends after the document that reaches this many tokens.

    Returns:
      `folder`.

    Raises:
      DataError: if the source cannot be read completely, or the folder exists.
      WriteError: if the folder cannot be written.
    """
    if processes < 1:
        raise DataError(f"processes is {processes}; it must be at least 1")
    if not 0 < heldout_fraction < 1:
        raise DataError(f"heldout_fraction is {heldout_fraction}; it must lie between 0 and 1")
    if is_remote(folder):
        if objects.keys(folder):
            raise DataError(f"{folder} exists; remove it or name another folder")
        with writing("a temporary folder"):
            temporary = tempfile.TemporaryDirectory(prefix="hybridlm-")
        with temporary as scratch:
            local = Path(scratch) / "tokens"
            tokenize(
                source, tokenizer, local, heldout_fraction, processes, shard_tokens=shard_tokens
            )
            upload_folder(local, folder)
        return open_path(folder)
    description = source.describe(tokenizer)
    with writing(folder), ShardWriter(Path(folder), tokenizer, shard_tokens) as writer:
        chunks, splitter = _chunked(source.documents()), Splitter(heldout_fraction)
        for texts, encoded in _encode(chunks, tokenizer, processes):
            for (digest, size), made in zip(texts, encoded, strict=True):
                writer.add(splitter.split_of(digest), made.ids, size, made.counts)
        return writer.finish(description, heldout_fraction)


class Splitter:
    """Assigns each document of a source, in order, to a split by a hash of its text.

    All copies of a text are in one split, so no held-out text is trained on. Adding, moving or
    renaming a document does not change the split of another. The first text of a source is always
    in "train" and the second different text in "heldout", so that with two texts neither is empty.
    """

    def __init__(self, heldout_fraction: float):
        self._threshold = heldout_fraction * 2**64
        self._first: list[bytes] = []

    def split_of(self, digest: bytes) -> str:
        """The split, "train" or "heldout", of a document with this `text_digest`."""
        if len(self._first) < 2 and digest not in self._first:
            self._first.append(digest)
        if digest in self._first:
            return ("train", "heldout")[self._first.index(digest)]
        return "heldout" if int.from_bytes(digest[:8]) < self._threshold else "train"


def text_digest(text: bytes) -> bytes:
    """The 16-byte BLAKE2b digest of a document's UTF-8 text, which determines its split."""
    return hashlib.blake2b(text, digest_size=16).digest()


def _chunked(documents: Iterable[Example]) -> Iterator[list[Example]]:
    chunk, size = [], 0
    for document in documents:
        chunk.append(document)
        size += len(document.text)
        if size >= _CHUNK_CHARS or len(chunk) >= _CHUNK_DOCUMENTS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _encode(
    chunks: Iterator[list[Example]], tokenizer: Tokenizer, processes: int
) -> Iterator[tuple[list[tuple[bytes, int]], list[Encoded]]]:
    """For each chunk, in order: (digest, UTF-8 bytes) of each text, and the tokens of each text."""
    if processes == 1:
        for chunk in chunks:
            yield _digests_and_sizes(chunk), [_encode_document(d, tokenizer) for d in chunk]
        return
    # Not Pool.imap, which reads its whole input at once.
    pool = concurrent.futures.ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_exit_with_parent
    )
    pending: collections.deque = collections.deque()
    try:
        for chunk in itertools.chain(chunks, [None]):
            if chunk is not None:
                identity = (tokenizer.kind, tokenizer.path, tokenizer.fingerprint)
                future = pool.submit(_encode_chunk, chunk, *identity)
                pending.append((_digests_and_sizes(chunk), future))
            while pending and (chunk is None or len(pending) >= 2 * processes):
                digests_and_sizes, future = pending.popleft()
                yield digests_and_sizes, future.result()
    except concurrent.futures.process.BrokenProcessPool:
        raise DataError(
            "a tokenizing process was killed or ran out of memory; use fewer processes"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _digests_and_sizes(chunk: list[Example]) -> list[tuple[bytes, int]]:
    texts = [document.text.encode("utf-8") for document in chunk]
    return [(text_digest(text), len(text)) for text in texts]


def _exit_with_parent() -> None:
    """Ends this pool process when its parent is killed; otherwise it would wait forever."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@functools.cache  # once per pool process
def _reopen(kind: str, path: str | None, fingerprint: str) -> Tokenizer:
    tokenizer = open_kind(kind, path)
    if tokenizer.fingerprint != fingerprint:
        raise DataError(f"tokenizer {path}: the file changed while it was in use")
    return tokenizer


def _encode_chunk(
    chunk: list[Example], kind: str, path: str | None, fingerprint: str
) -> list[Encoded]:
    tokenizer = _reopen(kind, path, fingerprint)
    return [_encode_document(document, tokenizer) for document in chunk]


def _encode_document(document: Example, tokenizer: Tokenizer) -> Encoded:
    try:
        return document.encode(tokenizer)
    except DataError as error:
        raise DataError(f"{document.id}: {error}") from None
