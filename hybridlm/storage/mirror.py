"""A folder of this machine whose files are copied to a bucket: for files that grow.

Objects cannot be appended to, so a growing file is written here and uploaded whole, at most every
`EVERY` seconds, and when `upload` is called.
"""

import contextlib
import os
import pathlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator

from hybridlm import progress
from hybridlm.errors import StorageError
from hybridlm.storage import objects
from hybridlm.storage.paths import DRAFT, is_remote
from hybridlm.storage.writing import write_bytes, writing

EVERY = 20.0  # seconds


class Mirror:
    """Copies the files of `local`, a temporary folder, to the folder `remote` of a bucket."""

    def __init__(self, remote: str, every: float = EVERY):
        """Raises WriteError if no temporary folder can be made."""
        with writing("a temporary folder"):
            self.local = pathlib.Path(tempfile.mkdtemp(prefix="hybridlm-"))
        self._remote, self._every = remote, every
        self._uploaded: dict[str, tuple[int, int]] = {}  # size and time of what is there
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._keep, name="mirror", daemon=True)
        self._thread.start()

    def download(self, name: str) -> None:
        """Copies a file from the bucket, if it is there; raises WriteError if it cannot be written."""
        data = objects.read(f"{self._remote}/{name}")
        if data is not None:
            write_bytes(self.local / name, data)
            self._uploaded[name] = _state(self.local / name)

    def check(self) -> None:
        """Raises what ended the uploads from time to time, if anything did."""
        if self._failure is not None:
            raise self._failure

    def upload(self) -> None:
        """Uploads the files that have changed, and waits for the end.

        Raises:
          StorageError: if a file cannot be read, or written to the bucket, now or earlier.
        """
        self.check()
        with self._lock:
            if not self.local.is_dir():
                raise StorageError(f"{self.local}, which is copied to {self._remote}, was removed")
            for path in sorted(self.local.rglob("*")):
                if path.is_file() and not path.name.endswith(DRAFT):
                    self._upload(path)

    def _upload(self, path: pathlib.Path) -> None:
        name = path.relative_to(self.local).as_posix()
        try:
            state = _state(path)  # first: what is appended meanwhile is uploaded the next time
            if self._uploaded.get(name) == state:
                return
            data = path.read_bytes()
        except FileNotFoundError:  # it was removed meanwhile
            return
        except OSError as error:
            raise StorageError(
                f"{path} cannot be read and uploaded to {self._remote}: {error.strerror or error}"
            ) from error
        objects.write(f"{self._remote}/{name}", data)
        self._uploaded[name] = state

    def close(self) -> None:
        """Uploads a last time, and removes the local folder."""
        try:
            self.upload()
        finally:
            self.discard()

    def discard(self) -> None:
        """Removes the local folder without uploading."""
        self._ended.set()
        self._thread.join(timeout=10)
        shutil.rmtree(self.local, ignore_errors=True)

    def _keep(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(max(0.0, last + self._every - time.monotonic())):
            last = time.monotonic()
            try:
                self.upload()
            except Exception as error:
                self._failure = error  # of the next record or flush
                progress.say(f"hybridlm: {error}")
                return


@contextlib.contextmanager
def growing_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """The file of this machine to append to: `path`, or a copy that replaces it at the end."""
    if not is_remote(path):
        yield path
        return
    mirror = Mirror(os.fspath(path.parent))
    try:
        mirror.download(path.name)
        yield mirror.local / path.name
    finally:
        mirror.close()


def _state(path: pathlib.Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
