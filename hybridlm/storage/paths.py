"""Paths of this machine and of buckets: `runs/a`, `gs://bucket/runs/a`, `s3://bucket/runs/a`.

Everything that a user names as a path goes through `open_path` or `check_path` when it is read, so
that a path that cannot be used is refused before anything else happens.
"""

import contextlib
import difflib
import os
import pathlib
import re
from typing import Any

from hybridlm.errors import UserError
from hybridlm.storage.objects import SCHEMES

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
DRAFT = ".tmp"  # at the end of the name of a file that is not whole yet
_PREFIXES = tuple(f"{scheme}://" for scheme in SCHEMES)


def is_remote(path: Any) -> bool:
    """Whether a path is one of a bucket."""
    return os.fspath(path).startswith(_PREFIXES)


def check_path(path: Any) -> None:
    """Checks a path's scheme and bucket; reads nothing.

    Raises:
      UserError: one sentence that begins with the path.
    """
    text = os.fspath(path)
    if is_remote(text):
        scheme, _, rest = text.partition("://")
        bucket, *parts = rest.split("/")
        if not bucket:
            raise UserError(f"{text} names no bucket: {scheme}://BUCKET/FOLDER would be right")
        if any(part in ("", ".", "..") for part in parts[:-1]) or parts[-1:] in (["."], [".."]):
            raise UserError(f"{text} has a part that is empty, '.' or '..': leave it out")
        return
    if collapsed := re.match(rf"({'|'.join(SCHEMES)}):/?(?!/)", text):
        scheme = collapsed[1]
        raise UserError(f"{text} is no path: a bucket's begins with {scheme}://")
    if found := _URL.match(text):
        scheme = found[1]
        if scheme.lower() == "file":
            raise UserError(f"{text} is no path: leave out {found[0]}")
        close = difflib.get_close_matches(scheme.lower(), [*SCHEMES, "gcs", "s3a", "s3n"], 1, 0.5)
        known = {"gcs": "gs", "s3a": "s3", "s3n": "s3"}
        hint = (
            f"did you mean {known.get(close[0], close[0])}://?"
            if close
            else "valid are gs://, s3://"
        )
        raise UserError(f"{text} has the scheme {found[0]}, which is not supported: {hint}")


def open_path(path: Any) -> pathlib.Path:
    """A `pathlib.Path` of this machine, or an `etils.epath.Path` of a bucket with the same methods.

    Raises:
      UserError: if the path cannot be used; one sentence that begins with it.
    """
    check_path(path)
    if not is_remote(path):
        return pathlib.Path(path)
    from etils import epath

    from hybridlm.storage import filesystem

    filesystem.register()
    return epath.Path(os.fspath(path).rstrip("/"))


def expand(path: Any) -> pathlib.Path:
    """`open_path`, with "~" of a local path expanded."""
    return open_path(path if is_remote(path) else os.path.expanduser(path))


def absolute(path: pathlib.Path) -> pathlib.Path:
    """The path as it is valid in every working directory."""
    return path if is_remote(path) else path.absolute()


def own_name(path: pathlib.Path) -> str:
    """The name of a file or folder, also where the path ends in "." or ".."."""
    return path.name if is_remote(path) else path.resolve().name


def write_whole(path: pathlib.Path, data: bytes) -> None:
    """Writes a file that every reader sees as it was before, or complete.

    Raises:
      OSError: for a local file; StorageError for a bucket's.
    """
    if is_remote(path):
        from hybridlm.storage import objects

        objects.write(path, data)
        return
    draft = path.with_name(path.name + DRAFT)
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
