"""Files of sources: finding, mapping, decompressing and writing them; optional libraries."""

import contextlib
import glob
import gzip
import hashlib
import importlib
import os
import secrets
import shutil
import socket
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from hybridlm.errors import DataError

_CHUNK = 1 << 20  # bytes read at once
# Files of these are not what they hold; a tar of text is valid UTF-8, headers included.
_UNREAD = frozenset(".bz2 .xz .lzma .lz4 .br .zip .7z .rar .tar .tgz .tbz2 .txz .Z".split())


class SourceFile(NamedTuple):
    """A file of a source; `name` is its path relative to the source's root."""

    name: str
    path: Path


def require_module(module: str, extra: str, purpose: str) -> ModuleType:
    """Imports an optional dependency.

    Raises:
      DataError: if it is missing; the message names the extra of hybridlm that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"{purpose} needs {module.partition('.')[0]} ({error}): pip install 'hybridlm[{extra}]'"
        ) from None


def source_files(path: str) -> list[SourceFile]:
    """The files of a source, sorted by name.

    `path` is a file, a folder (all files below it whose names do not begin with a dot) or a
    glob ("**" matches subfolders).

    Raises:
      DataError: if there is no such file.
    """
    given, path = path, os.path.expanduser(path)
    if os.path.isfile(path):
        return [SourceFile(os.path.basename(path), Path(path))]
    if os.path.isdir(path):
        root, kind = Path(path), "the folder"
        found = [p for p in _walk(root) if not _hidden(p.relative_to(root))]
    elif glob.has_magic(path):
        parts = Path(path).parts
        fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        root = Path(*parts[:fixed]) if fixed else Path(".")
        found = [p for p in map(Path, glob.glob(path, recursive=True)) if not p.is_dir()]
        kind = "the glob"
    else:
        raise DataError(f"source {given}: there is no such file or folder")
    files = [SourceFile(p.relative_to(root).as_posix(), p) for p in found]
    if not files:
        raise DataError(f"source {given}: {kind} holds no file")
    for file in files:
        if not file.path.is_file():
            raise DataError(f"{file.path}: is not a file, or is a broken link")
    return sorted(files)


def _walk(folder: Path) -> list[Path]:
    """All files below `folder`; follows links to folders."""

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from None

    found, seen = [], set()
    for parent, subfolders, names in os.walk(folder, followlinks=True, onerror=fail):
        if (real := os.path.realpath(parent)) in seen:
            raise DataError(f"{parent}: is a link to {real}, which is already in the source")
        seen.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [Path(parent, name) for name in names]
    return found


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def map_ids(path: Path, dtype: np.dtype, offset: int = 0, count: int = -1) -> np.ndarray:
    """Numbers of a file from byte `offset` on, mapped into memory; -1 takes all to its end."""
    if count < 0:
        count = (path.stat().st_size - offset) // dtype.itemsize
    if not count:  # no bytes cannot be mapped
        return np.empty(0, dtype)
    mapped = np.memmap(path, dtype, mode="r", offset=offset, shape=(count,))
    return np.asarray(mapped)  # slicing a plain array is faster


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`; it takes that name when the block ends without an error.

    If another process has made the folder in the meantime, that one is kept.
    """
    partial = partial_folder(folder)
    try:
        yield partial
        for path in partial.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        try:
            os.rename(partial, folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def partial_folder(folder: Path) -> Path:
    """Makes a temporary folder beside `folder`, for this process to fill and rename.

    Those that killed processes of this machine left are removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for stale in folder.parent.glob(f"{glob.escape(folder.name)}.partial-*"):
        host, pid, _ = stale.name[len(folder.name) + len(".partial-") :].rsplit("-", 2)
        if host == socket.gethostname() and pid.isdigit() and not Path(f"/proc/{pid}").exists():
            if Path("/proc/self").exists():
                shutil.rmtree(stale, ignore_errors=True)
    writer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    partial = folder.parent / f"{folder.name}.partial-{writer}"
    partial.mkdir()
    return partial


def utf8(data: bytes, where: str) -> str:
    """The text of `data`, strictly decoded; errors begin with `where`."""
    try:
        return data.decode("utf-8", errors="strict")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: invalid UTF-8 at byte {error.start} ({error.reason}); "
            "convert the file to UTF-8"
        ) from None


def check_compression(path: Path | str) -> None:
    """Raises DataError if the name says that the file is an archive, or compressed in another way."""
    path = Path(path)
    suffix = path.with_suffix("").suffix if path.suffix in (".gz", ".zst") else path.suffix
    if suffix in _UNREAD:
        raise DataError(
            f"{path}: {suffix} files are not read: unpack it, or compress its files as .gz or .zst"
        )


def chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, decompressed according to its suffix; raises if it is truncated."""
    check_compression(path)
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if not size:  # for gzip and zstd that is an end without an error
        raise DataError(f"{path}: the file has 0 bytes; copy it again, or remove it")
    if path.suffix == ".zst":
        yield from _zstd_chunks(path)
        return
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except EOFError:
        raise DataError(f"{path}: the gzip file is truncated; copy it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: the gzip file is corrupt ({error}); copy it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _zstd_chunks(path: Path) -> Iterator[bytes]:
    # Not stream_reader, which reports no error at the end of a truncated file.
    zstandard = require_module("zstandard", "data", f"reading {path}")
    decompressor, frame = zstandard.ZstdDecompressor(), None
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                while chunk:
                    frame = decompressor.decompressobj() if frame is None else frame
                    if data := frame.decompress(chunk):
                        yield data
                    chunk = frame.unused_data if frame.eof else b""
                    frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise DataError(f"{path}: the zstd file is corrupt ({error}); copy it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    if frame is not None:
        raise DataError(f"{path}: the zstd file is truncated; copy it again")


def lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Splits at newlines; yields a last line without newline, but no empty last line."""
    partial: list[bytes] = []
    for chunk in chunks:
        first, *more = chunk.split(b"\n")
        partial.append(first)
        if more:
            yield b"".join(partial)
            yield from more[:-1]
            partial = [more[-1]]
    if last := b"".join(partial):
        yield last
