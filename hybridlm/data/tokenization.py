"""From text to token shards, in parallel; the files are the same for any number of processes."""

import collections
import concurrent.futures
import functools
import hashlib
import itertools
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from hybridlm.data.settings import SourceConfig
from hybridlm.data.shards import SHARD_TOKENS, ShardWriter
from hybridlm.data.sources import Document, describe_source, read_documents
from hybridlm.data.tokenizers import Tokenizer, open_kind
from hybridlm.errors import DataError

_CHUNK_CHARS = 1 << 20  # text sent to a process at once
_CHUNK_DOCUMENTS = 4096


def tokenize(
    source: SourceConfig,
    tokenizer: Tokenizer,
    folder: str | Path,
    heldout_fraction: float,
    processes: int = 1,
    *,
    shard_tokens: int = SHARD_TOKENS,
) -> Path:
    """Writes a raw-text source as token shards (`hybridlm.data.shards`).

    Documents are read here, in order, and encoded by a pool of spawned processes; at most two
    chunks of text a process are under way, so memory does not grow with the source.

    Args:
      source: of a raw-text kind.
      tokenizer: what `open_tokenizer` gave.
      folder: the folder to make; it must not exist, and appears only when it is whole.
      heldout_fraction: share of documents kept for evaluation, see `Splitter`.
      processes: 1 encodes in this process.
      shard_tokens: a shard ends with the document that reaches this many tokens.

    Returns:
      `folder`.

    Raises:
      DataError: for a source that cannot be read whole, or a folder that exists.
    """
    if processes < 1:
        raise DataError(f"processes is {processes}; it must be at least 1")
    if not 0 < heldout_fraction < 1:
        raise DataError(f"heldout_fraction is {heldout_fraction}; it must lie between 0 and 1")
    description = describe_source(source)
    try:
        with ShardWriter(Path(folder), tokenizer, shard_tokens) as writer:
            chunks, splitter = _chunked(read_documents(source)), Splitter(heldout_fraction)
            for texts, encoded in _encode(chunks, tokenizer, processes):
                for (digest, size), ids in zip(texts, encoded, strict=True):
                    writer.add(splitter.split_of(digest), ids, size)
            return writer.finish(description, heldout_fraction)
    except OSError as error:
        raise DataError(f"tokens cannot be written to {folder} ({error.strerror})") from None


class Splitter:
    """Says of each document of a source, in order, whether it is held out: by its text.

    Copies of a text go where it goes, so no held-out text is in training; nor does a document
    that is added, moved or renamed change the split of another. The first text of a source always
    trains and the second different one never does: with two texts or more neither split is empty.
    """

    def __init__(self, heldout_fraction: float):
        self._below = heldout_fraction * 2**64
        self._first: list[bytes] = []

    def split_of(self, digest: bytes) -> str:
        """ "train" or "heldout", for a document whose text has this `text_digest`."""
        if len(self._first) < 2 and digest not in self._first:
            self._first.append(digest)
        if digest in self._first:
            return ("train", "heldout")[self._first.index(digest)]
        return "heldout" if int.from_bytes(digest[:8]) < self._below else "train"


def text_digest(text: bytes) -> bytes:
    """What decides a document's split: 16 bytes of BLAKE2b of its UTF-8 text."""
    return hashlib.blake2b(text, digest_size=16).digest()


def _chunked(documents: Iterable[Document]) -> Iterator[list[Document]]:
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
    chunks: Iterator[list[Document]], tokenizer: Tokenizer, processes: int
) -> Iterator[tuple[list[tuple[bytes, int]], list[np.ndarray]]]:
    """((digest, UTF-8 bytes) of each text, ids of each) by chunk, in the order of `chunks`."""
    if processes == 1:
        for chunk in chunks:
            yield _described(chunk), [tokenizer.encode(document.text) for document in chunk]
        return
    # Not Pool.imap: it reads its whole input at once.
    pool = concurrent.futures.ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent
    )
    waiting: collections.deque = collections.deque()
    try:
        for chunk in itertools.chain(chunks, [None]):
            if chunk is not None:
                texts = [document.text for document in chunk]
                opened = (tokenizer.kind, tokenizer.path, tokenizer.fingerprint)
                waiting.append((_described(chunk), pool.submit(_encode_texts, texts, *opened)))
            while waiting and (chunk is None or len(waiting) >= 2 * processes):
                described, future = waiting.popleft()
                yield described, future.result()
    except concurrent.futures.process.BrokenProcessPool:
        raise DataError(
            "a process that tokenizes died (killed, or out of memory); use fewer processes"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _described(chunk: list[Document]) -> list[tuple[bytes, int]]:
    texts = [document.text.encode("utf-8") for document in chunk]
    return [(text_digest(text), len(text)) for text in texts]


def _end_with_parent() -> None:
    """Ends this process of the pool when the one that made it is killed: it would wait for ever."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@functools.cache  # once a process of the pool
def _open_again(kind: str, path: str | None, fingerprint: str) -> Tokenizer:
    tokenizer = open_kind(kind, path)
    if tokenizer.fingerprint != fingerprint:
        raise DataError(f"tokenizer {path}: the file changed while it was in use")
    return tokenizer


def _encode_texts(
    texts: list[str], kind: str, path: str | None, fingerprint: str
) -> list[np.ndarray]:
    tokenizer = _open_again(kind, path, fingerprint)
    return [tokenizer.encode(text) for text in texts]
