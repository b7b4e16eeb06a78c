"""Sources: the settings of every kind, and the text that most kinds read."""

import abc
import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Protocol

from hybridlm.data.examples import Example
from hybridlm.data.files import SourceFile, source_files
from hybridlm.data.store import Opening, TokenStore
from hybridlm.data.tokenizers import Tokenizer
from hybridlm.errors import DataError, StorageError
from hybridlm.settings.bounds import Above, IsPath, NotEmpty, PositiveFloat, settings
from hybridlm.storage import is_remote
from hybridlm.storage.local_copies import local_copy, names_in_bucket


@settings
class SourceConfig(abc.ABC):
    """Settings of one source; `kind_name` is what configs write as `kind`.

    Attributes:
      path: a file, a folder or a glob; relative paths start at the working directory.
      weight: share of this source in the mixture, relative to the other sources.
      max_epochs: how often a run may read the source; a run that would read it more often is refused
        at its start. None for no limit.
    """

    kind_name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()  # modules of the extra "data"

    path: Annotated[str, NotEmpty(), IsPath()]
    weight: PositiveFloat = 1.0
    max_epochs: Annotated[float, Above(0, none="for no limit")] | None = None

    def files(self, path: str) -> list[SourceFile]:
        """The files of this machine that `path` names, in order.

        Raises:
          DataError: if there is none, or one is missing.
        """
        return source_files(path)

    def in_bucket(self, url: str) -> tuple[str, tuple[str, ...]]:
        """(the file, folder or glob of a bucket that holds what `url` names, its files' endings).

        Each ending makes a file or a glob of its own; see `local_copies.local_copy`.
        """
        return url, ("",)

    def find(self, path: str) -> list[str]:
        """Names of the files that `path` names, here or in a bucket.

        Objects of a bucket are listed; only a list of files among them is read, and none is copied.

        Raises:
          DataError: if there is none, or one is missing. StorageError: if the bucket cannot be listed.
        """
        if not is_remote(path):
            return [file.name for file in self.files(path)]
        names = names_in_bucket(*self.in_bucket(path))
        if not names:
            raise DataError(f"source {path}: there is no such file or folder")
        return names

    def check(self, tokenizer: Tokenizer, files: bool = True) -> list[str]:
        """Checks what opening will need, before a device is touched; reads no file of data.

        Args:
          files: whether the files must be there; those of a bucket are listed and not copied.

        Returns:
          The names of the files, see `find`; none without `files`.

        Raises:
          DataError: what is missing. StorageError: if a bucket cannot be listed.
        """
        paths = self._data_paths().values() if files else ()
        return [name for path in paths for name in self.find(path)]

    def on_this_machine(self) -> "SourceConfig":
        """The source with the files of a bucket copied to this machine, if it has such files.

        Raises:
          DataError: if there is no such file, or it cannot be read. WriteError: on a full disk.
        """
        try:
            copies = {
                name: local_copy(*self.in_bucket(path))
                for name, path in self._data_paths().items()
                if is_remote(path)
            }
        except StorageError as error:
            raise DataError(f"source {error}") from None
        return dataclasses.replace(self, **copies) if copies else self

    def _data_paths(self) -> dict[str, str]:
        """The settings that name files of data."""
        found = {name: getattr(self, name, None) for name in ("path", "heldout_path")}
        return {name: path for name, path in found.items() if path is not None}

    @abc.abstractmethod
    def open(self, opening: Opening) -> TokenStore:
        """The source's documents as tokens, checked.

        Raises:
          DataError: if the source cannot be read; one sentence that names the file.
        """


class TextReader(Protocol):
    """A source that yields text; `hybridlm.data.sources.text_source.TextSource` is its base."""

    def documents(self) -> Iterator[Example]:
        """Streams the documents, file by file, sorted by name.

        Raises:
          DataError: for a source without files or documents, a truncated or corrupt file, invalid
            UTF-8, a malformed line, a missing or non-text field, a document without text.
        """

    def describe(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """What the documents depend on (kind, keys, files with SHA-256), ready for JSON."""
