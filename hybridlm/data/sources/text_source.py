"""The base of sources of text, which are tokenized once, into shards."""

import abc
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from hybridlm.data.examples import Example
from hybridlm.data.files import SourceFile, check_compression, file_sha256, require_module, utf8
from hybridlm.data.shards import (
    MASKED_VERSION,
    VERSION,
    describe_tokenizer,
    open_shards,
    read_manifest,
)
from hybridlm.data.source import SourceConfig
from hybridlm.data.store import Opening, TokenStore
from hybridlm.data.tokenization import tokenize
from hybridlm.data.tokenizers import Tokenizer
from hybridlm.errors import DataError
from hybridlm.settings.bounds import settings

_log = logging.getLogger(__name__)
_PARALLEL_BYTES = 64 << 20  # several processes tokenize sources of at least this size


@settings
class TextSource(SourceConfig):
    """A source of text: a kind gives `read_file`, and this class the rest.

    The readers skip and repair nothing: malformed input raises a `DataError` that names the file
    and the line, row, record or byte.
    """

    answers_only: ClassVar[bool] = False  # whether only answers count as targets

    @abc.abstractmethod
    def read_file(self, file: SourceFile) -> Iterator[Example]:
        """Streams the documents of one file."""

    @property
    def read_key(self) -> str | None:
        """The field or column that holds the text; None if files or records have no fields."""
        return None

    def check(self, tokenizer: Tokenizer, files: bool = True) -> list[str]:
        """See `SourceConfig.check`."""
        names = super().check(tokenizer, files)
        for name in names:
            check_compression(name)
        if any(name.endswith(".zst") for name in names):
            require_module("zstandard", "data", "reading .zst files")
        return names

    def documents(self) -> Iterator[Example]:
        """Streams the documents: see `TextReader.documents`."""
        count = 0
        for file in self.files(self.path):
            for document in self.read_file(file):
                if not document.text:
                    raise DataError(
                        f"{file.path}{document.id[len(file.name) :]}: the document has no text; "
                        "remove it from the source"
                    )
                count += 1
                yield document
        if not count:
            raise DataError(f"source {self.path} ({self.kind_name}): holds no document")

    def describe_reading(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """What the documents depend on beside the kind and the files, ready for JSON."""
        return {"text_key": self.read_key}

    def describe(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """The kind, keys and files (with SHA-256), ready for JSON."""
        try:
            files = [
                {"name": f.name, "bytes": f.path.stat().st_size, "sha256": file_sha256(f.path)}
                for f in self.files(self.path)
            ]
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from None
        return {"kind": self.kind_name, **self.describe_reading(tokenizer), "files": files}

    def open(self, opening: Opening) -> TokenStore:
        """The shards of the text; tokenizes text that no earlier run has tokenized.

        The folder's name is the source's name and a hash of its settings, the content of its files,
        the tokenizer and the held-out fraction; an existing folder is used only if its manifest
        records the same.
        """
        folder = self._token_folder(opening)
        return open_shards(folder, tokenizer=opening.tokenizer, verify=opening.verify)

    def _token_folder(self, opening: Opening) -> Path:
        description = self.describe(opening.tokenizer)
        expected = {
            "source": description,
            "tokenizer": describe_tokenizer(opening.tokenizer),
            "heldout_fraction": opening.heldout_fraction,
            "version": MASKED_VERSION if self.answers_only else VERSION,
        }
        digest = hashlib.sha256(
            json.dumps(expected, sort_keys=True, allow_nan=False).encode()
        ).hexdigest()
        folder = opening.folder(digest)
        if not folder.exists():
            size = sum(file["bytes"] for file in description["files"])
            processes = min(os.cpu_count() or 1, 16) if size >= _PARALLEL_BYTES else 1
            _log.info("tokenizing %s (%.1f MB) into %s", opening.name, size / 1e6, folder)
            try:
                tokenize(self, opening.tokenizer, folder, opening.heldout_fraction, processes)
            except DataError:
                if not folder.exists():  # otherwise another run wrote the same folder first
                    raise
        manifest = read_manifest(folder)
        if {key: manifest[key] for key in expected} != expected:
            raise DataError(
                f"{folder}: holds tokens of other settings or other text; remove it, or set "
                "another data.token_cache"
            )
        return folder


def field_text(value: Any, key: str, where: str) -> str:
    """Checks that a field's value is text that UTF-8 can encode."""
    if isinstance(value, bytes):
        return utf8(value, where)
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise DataError(f"{where}: {key!r} is {kind}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: {key!r} has an unpaired surrogate at character {error.start}, "
            "which UTF-8 cannot encode"
        ) from None
    return value
