"""A filesystem of `fsspec` over the objects of a bucket: what `etils.epath` reads and writes with.

Folders are prefixes: there is nothing to make, and a folder exists while an object is below it.
Nothing is cached, because other processes write to the same bucket. A file that is written appears
whole when it is closed, and not at all if an exception ends the block.
"""

import errno
import io
import os
from typing import Any

import fsspec

from hybridlm.storage import objects

#: Orbax writes this file last into a checkpoint; it is deleted first.
COMMIT_MARK = "commit_success.txt"


class BucketFileSystem(fsspec.AbstractFileSystem):
    """Files of one scheme, by URL; names in listings have no scheme, as fsspec wants it."""

    cachable = False  # instances hold nothing
    scheme = ""

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list | tuple):
            return [cls._strip_protocol(p) for p in path]
        return os.fspath(path).partition("://")[2].strip("/") if "://" in path else path.strip("/")

    def _url(self, path: Any) -> str:
        return f"{self.scheme}://{self._strip_protocol(path)}"

    def info(self, path: Any, **options: Any) -> dict[str, Any]:
        url, name = self._url(path), self._strip_protocol(path)
        if "/" in name and objects.exists(url):
            return {"name": name, "type": "file", "size": None}
        if "/" not in name or objects.keys(url):
            return {"name": name, "type": "directory", "size": 0}
        raise _absent(url)

    def exists(self, path: Any, **options: Any) -> bool:
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def ls(self, path: Any, detail: bool = True, **options: Any) -> list[Any]:
        name, kinds = self._strip_protocol(path), {}
        for key in objects.keys(self._url(path)):
            first, slash, _ = key.partition("/")
            kinds[f"{name}/{first}"] = "directory" if slash else "file"
        if not kinds:
            self.info(path)  # a file, or there is nothing
            kinds = {} if "/" not in name else {name: "file"}
        found = [{"name": n, "type": kind, "size": None} for n, kind in kinds.items()]
        return found if detail else [entry["name"] for entry in found]

    def mkdir(self, path: Any, create_parents: bool = True, **options: Any) -> None: ...

    def makedirs(self, path: Any, exist_ok: bool = False) -> None:
        if not exist_ok and self.exists(path):
            raise FileExistsError(self._url(path))

    def rmdir(self, path: Any) -> None: ...

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        paths = path if isinstance(path, list) else [path]
        for url in map(self._url, paths):
            if self.info(url)["type"] == "file":
                objects.delete(url)
            elif recursive:
                objects.delete_tree(url, first=(COMMIT_MARK,))
            else:
                raise IsADirectoryError(url)

    def rm_file(self, path: Any) -> None:
        objects.delete(self._url(path))

    def cp_file(self, path1: Any, path2: Any, **options: Any) -> None:
        data = objects.read(self._url(path1))
        if data is None:
            raise _absent(self._url(path1))
        objects.write(self._url(path2), data)

    def cat_file(self, path: Any, start: Any = None, end: Any = None, **options: Any) -> bytes:
        data = objects.read(self._url(path))
        if data is None:
            raise _absent(self._url(path))
        return data[start:end]

    def pipe_file(self, path: Any, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        absent = objects.ABSENT if mode == "create" else None
        if objects.write(self._url(path), bytes(value), absent) is None:
            raise FileExistsError(self._url(path))

    def open(self, path: Any, mode: str = "rb", **options: Any) -> Any:
        if mode != "w":
            return super().open(path, mode, **options)
        encoding, newline = options.get("encoding") or "utf-8", options.get("newline")
        return _TextWriter(self._open(path, "wb"), encoding, newline=newline)

    def _open(self, path: Any, mode: str = "rb", **options: Any) -> Any:
        url = self._url(path)
        if mode == "rb":
            return io.BufferedReader(_Reader(url))
        if mode == "wb":
            return _Writer(url)
        raise ValueError(f"{url} cannot be opened with mode {mode!r}: objects are written whole")


class GoogleFileSystem(BucketFileSystem):
    protocol, scheme = ("gs", "gcs"), "gs"


class S3FileSystem(BucketFileSystem):
    protocol, scheme = ("s3",), "s3"


class _Reader(io.RawIOBase):
    """The content of an object, from its beginning to its end."""

    def __init__(self, url: str):
        self._parts, self._rest = objects.stream(url), b""
        self._rest = next(self._parts)  # an object that does not exist raises here

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            if (part := next(self._parts, None)) is None:
                return 0
            self._rest = part
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


class _Writer(io.BytesIO):
    """Writes the object when it is closed, unless an exception ends its block."""

    def __init__(self, url: str):
        super().__init__()
        self._url = url

    def __exit__(self, kind: Any, *exception: Any) -> None:
        self.discard() if kind is not None else self.close()

    def discard(self) -> None:
        """Closes without writing."""
        super().close()

    def close(self) -> None:
        if not self.closed:
            data = self.getvalue()
            super().close()
            objects.write(self._url, data)


class _TextWriter(io.TextIOWrapper):
    """Text for a `_Writer`."""

    def __exit__(self, kind: Any, *exception: Any) -> None:
        if kind is not None:
            self.buffer.discard()
        else:
            self.close()


def _absent(url: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "there is no such object", url)


def register() -> None:
    """Makes `fsspec`, and with it `etils.epath` and Orbax, use these filesystems."""
    for cls in (GoogleFileSystem, S3FileSystem):
        for name in cls.protocol:
            fsspec.register_implementation(name, cls, clobber=True)
