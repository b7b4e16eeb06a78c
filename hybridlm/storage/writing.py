"""Writes files; a write that fails raises a WriteError, one sentence with the file's path."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from hybridlm.errors import WriteError
from hybridlm.storage.paths import write_whole


@contextlib.contextmanager
def writing(path: pathlib.Path | str) -> Iterator[None]:
    """Converts the OSError of a full disk or a folder without permission to a WriteError.

    Args:
      path: the file or folder that is written, as the user knows it.

    Raises:
      WriteError: for an OSError inside the context.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror or error}") from error


def make_folder(path: pathlib.Path) -> None:
    """Makes a folder and the folders above it; an existing one stays as it is.

    Raises:
      WriteError: if it cannot be made.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """Writes a file: whole, or not at all. A file that it replaces stays until then.

    Raises:
      WriteError: if it cannot be written.
    """
    with writing(path):
        write_whole(path, content)


def write_text(path: pathlib.Path, text: str, errors: str = "strict") -> None:
    """Writes a UTF-8 file as `write_bytes` does; `errors` is that of `str.encode`."""
    write_bytes(path, text.encode("utf-8", errors))


class AppendedFile:
    """A file that grows; it has no buffer, so that a failed write is known at once."""

    def __init__(self, path: pathlib.Path):
        """Opens or creates the file.

        Raises:
          WriteError: if it cannot be opened.
        """
        self.path = path
        with writing(path):
            self._file = path.open("ab", buffering=0)

    def write(self, content: bytes) -> None:
        """Appends; raises WriteError if not all of it can be written."""
        with writing(self.path):
            _write_all(self._file, content)

    def sync(self) -> None:
        """Waits until the device holds what was written; raises WriteError if it cannot."""
        with writing(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _write_all(file, content: bytes) -> None:
    """One `write` of a file without a buffer may take a part only."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]
