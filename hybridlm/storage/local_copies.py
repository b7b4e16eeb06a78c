"""Copies of a bucket's files on this machine, for readers that map files into memory.

`local_copy` copies what a path names into a folder of the user's cache; the copy is used again while
the objects are the same. `upload_folder` and `download_folder` are for folders that are written
once: the list of their files is uploaded last, and without it the folder counts as absent.
"""

import concurrent.futures
import fnmatch
import glob
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from hybridlm import progress
from hybridlm.errors import StorageError, WriteError
from hybridlm.storage import objects
from hybridlm.storage.paths import is_remote
from hybridlm.storage.writing import writing

LIST = ".files.json"  # of a folder that is written once: {name: [bytes, SHA-256]}
_AT_ONCE = 8  # objects


def cache_folder() -> pathlib.Path:
    """`hybridlm/files` in XDG_CACHE_HOME, or in ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(home).expanduser() / "hybridlm" / "files"


def copy_of(url: str) -> pathlib.Path:
    """The folder of the user's cache for the copies of a folder's subfolders."""
    return cache_folder() / "shared" / hashlib.sha256(url.encode()).hexdigest()[:24]


def local_copy(path: Any, endings: Sequence[str] = ("",)) -> str:
    """The path on this machine of what `path` names: a file, a folder, or a glob.

    Paths of this machine are returned as they are. Of a bucket's folder, files whose names begin
    with a dot are left out.

    Args:
      endings: a file or a glob is `path` with each of them; the returned path has none.

    Raises:
      StorageError: if there is no such file, or it cannot be copied. WriteError: on a full disk.
    """
    url = os.fspath(path)
    if not is_remote(url):
        return url
    root, names, pattern = _listed(url, endings)
    if not names:
        raise StorageError(f"{url}: there is no such file or folder")
    versions = _versions(root, names)
    key = json.dumps([root, versions], sort_keys=True, allow_nan=False)
    folder = cache_folder() / "copies" / hashlib.sha256(key.encode()).hexdigest()[:24]
    if not (folder / ".complete").exists():
        _copy_files(root, names, folder)
        with writing(folder):
            (folder / ".complete").touch()
    return str(folder / pattern) if pattern else str(folder)


def names_in_bucket(url: Any, endings: Sequence[str] = ("",)) -> list[str]:
    """Names of the objects that `local_copy` would copy, relative to the folder that holds them.

    Raises:
      StorageError: if they cannot be listed.
    """
    return _listed(os.fspath(url), endings)[1]


def local_file(path: Any) -> pathlib.Path:
    """`local_copy` of a file."""
    return pathlib.Path(local_copy(path))


def upload_folder(folder: pathlib.Path, url: Any) -> None:
    """Uploads the files of a folder, and last the list of them."""
    files, waiting = {}, _Waiting(f"uploading {folder.name} to {os.fspath(url)}")
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name, data = path.relative_to(folder).as_posix(), path.read_bytes()
        objects.write(f"{os.fspath(url)}/{name}", data)
        files[name] = [len(data), hashlib.sha256(data).hexdigest()]
        waiting.done(len(data))
    objects.write(f"{os.fspath(url)}/{LIST}", json.dumps(files, indent=1, allow_nan=False).encode())


def is_uploaded(url: Any) -> bool:
    """Whether a folder was uploaded whole."""
    return objects.exists(f"{os.fspath(url)}/{LIST}")


def download_folder(url: Any, folder: pathlib.Path) -> bool:
    """Downloads a folder that `upload_folder` uploaded; False if it is not there, whole.

    Raises:
      StorageError: if a file is not the one that was uploaded. WriteError: if it cannot be written.
    """
    listed = objects.read(f"{os.fspath(url)}/{LIST}")
    if listed is None:
        return False
    try:
        files = {name: (size, digest) for name, (size, digest) in json.loads(listed).items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise StorageError(
            f"{os.fspath(url)}/{LIST} is not the list that was uploaded: remove that folder"
        ) from None
    draft = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        _copy_files(os.fspath(url), sorted(files), draft)
        for name, (size, digest) in files.items():
            with (draft / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != digest:
                raise StorageError(
                    f"{os.fspath(url)}/{name} is not the file that was uploaded ({size:,} bytes, SHA-256"
                    f" {digest[:12]}…): remove that folder"
                )
        try:
            with writing(folder):
                draft.rename(folder)
        except WriteError:
            if not folder.is_dir():  # otherwise another process has made it
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return True


def _listed(url: str, endings: Sequence[str]) -> tuple[str, list[str], str]:
    """(folder, names below it, what the URL names in it): "" for all of the folder."""
    url = url.rstrip("/")
    root, pattern = url, ""
    if glob.has_magic(url):
        parts = url.split("/")
        fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        root, pattern = "/".join(parts[:fixed]), "/".join(parts[fixed:])
        patterns = [f"{pattern}{ending}" for ending in endings]
        names = [n for n in objects.keys(root) if any(_matches(n, p) for p in patterns)]
    elif found := [ending for ending in endings if objects.exists(f"{url}{ending}")]:
        root, _, pattern = url.rpartition("/")
        names = [f"{pattern}{ending}" for ending in found]
    else:
        names = objects.keys(root)
    shown = [name for name in names if not any(p.startswith(".") for p in name.split("/"))]
    return root, shown, pattern


def _matches(name: str, pattern: str) -> bool:
    """Whether a name matches a glob, "**" for any number of folders."""

    def match(parts: list[str], patterns: list[str]) -> bool:
        if not patterns:
            return not parts
        if patterns[0] == "**":
            return any(match(parts[i:], patterns[1:]) for i in range(len(parts) + 1))
        return (
            bool(parts)
            and fnmatch.fnmatchcase(parts[0], patterns[0])
            and match(parts[1:], patterns[1:])
        )

    return match(name.split("/"), pattern.split("/"))


def _versions(root: str, names: list[str]) -> dict[str, str]:
    """The version of each object; one that no other has where the server names none."""

    def version(name: str) -> str:
        found = objects.version(f"{root}/{name}")
        return secrets.token_hex(8) if found is None else found.hex()

    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip(names, pool.map(version, names)))


def _copy_files(root: str, names: list[str], folder: pathlib.Path) -> None:
    waiting = _Waiting(f"downloading {root} into {folder}", len(names))

    def copy(name: str) -> None:
        target = folder / name
        if target.exists():  # an earlier process was killed after it
            return waiting.done(0)
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}")
            try:
                with draft.open("wb") as file:
                    for part in _parts(f"{root}/{name}"):
                        file.write(part)
                        waiting.add(len(part))
                draft.replace(target)
            finally:
                draft.unlink(missing_ok=True)
        waiting.done(0)

    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(copy, names))


def _parts(url: str) -> Iterator[bytes]:
    """`objects.stream`, with a StorageError for an object that is gone."""
    try:
        yield from objects.stream(url)
    except FileNotFoundError as error:
        raise StorageError(f"{url} cannot be copied: {error.strerror}") from None


class _Waiting:
    """Says how far a transfer has come, after 2 seconds and then less and less often."""

    def __init__(self, doing: str, files: int | None = None):
        self._doing, self._files, self._done, self._bytes = doing, files, 0, 0
        self._began, self._next = time.monotonic(), objects.SAY_AFTER

    def add(self, count: int) -> None:
        self._bytes += count
        passed = time.monotonic() - self._began
        if passed >= self._next:
            self._next = 3 * passed
            of = "" if self._files is None else f" of {self._files}"
            progress.write(
                sys.stderr,
                f"hybridlm: {self._doing}: {self._done}{of} files, {self._bytes / 1e6:,.0f} MB in"
                f" {passed:.0f} s",
            )

    def done(self, count: int) -> None:
        self._done += 1
        self.add(count)
