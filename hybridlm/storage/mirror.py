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

from hybridlm.errors import UserError
from hybridlm.storage import objects
from hybridlm.storage.paths import is_remote

EVERY = 20.0  # seconds


class Mirror:
    """Copies the files of `local`, a temporary folder, to the folder `remote` of a bucket."""

    def __init__(self, remote: str, every: float = EVERY):
        self.local = pathlib.Path(tempfile.mkdtemp(prefix="hybridlm-"))
        self._remote, self._every = remote, every
        self._uploaded: dict[str, tuple[int, int]] = {}  # size and time of what is there
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._failure: UserError | None = None
        self._thread = threading.Thread(target=self._keep, name="mirror", daemon=True)
        self._thread.start()

    def download(self, name: str) -> None:
        """Copies a file from the bucket, if it is there."""
        data = objects.read(f"{self._remote}/{name}")
        if data is not None:
            (self.local / name).write_bytes(data)
            self._uploaded[name] = _state(self.local / name)

    def upload(self) -> None:
        """Uploads the files that have changed, and waits for the end.

        Raises:
          UserError: if a file cannot be written to the bucket, now or earlier.
        """
        if self._failure is not None:
            raise self._failure
        with self._lock:
            for path in sorted(self.local.rglob("*")):
                name, state = path.relative_to(self.local).as_posix(), _state(path)
                if path.is_file() and self._uploaded.get(name) != state:
                    objects.write(f"{self._remote}/{name}", path.read_bytes())
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
            except UserError as error:
                self._failure = error
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
