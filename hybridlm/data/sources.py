"""Sources of text: files, JSONL, parquet and ArrayRecord, read as a stream of documents.

The readers skip and repair nothing: malformed input raises a `DataError` that names the file and
the line, row, record or byte.
"""

import glob
import gzip
import hashlib
import importlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from hybridlm.data.settings import SourceConfig
from hybridlm.errors import DataError
from hybridlm.settings.json_text import parse_json

_CHUNK = 1 << 20  # bytes read at once


class Document(NamedTuple):
    """One text. `id` is the file's path relative to the source's root, with ":line" or ":row"."""

    id: str
    text: str


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


def source_files(source: SourceConfig) -> list[SourceFile]:
    """The files of a raw-text source, sorted by name.

    `source.path` is a file, a folder (all files below it whose names do not begin with a dot) or a
    glob ("**" matches subfolders).

    Raises:
      DataError: if there is no such file.
    """
    path = os.path.expanduser(source.path)
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
        raise DataError(f"source {source.path}: there is no such file or folder")
    files = [SourceFile(p.relative_to(root).as_posix(), p) for p in found]
    if not files:
        raise DataError(f"source {source.path}: {kind} holds no file")
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


def describe_source(source: SourceConfig) -> dict[str, Any]:
    """The kind, text key and files (with SHA-256) of a source, ready for JSON."""
    try:
        files = [
            {"name": f.name, "bytes": f.path.stat().st_size, "sha256": file_sha256(f.path)}
            for f in source_files(source)
        ]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from None
    keyed = source.kind in ("jsonl", "parquet")
    return {"kind": source.kind, "text_key": source.text_key if keyed else None, "files": files}


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_documents(source: SourceConfig) -> Iterator[Document]:
    """Streams the documents of a raw-text source, file by file, sorted by name.

    Args:
      source: of kind "text" (one document per file), "jsonl" (per line), "parquet" (per row) or
        "arrayrecord" (per record); names of text and JSONL files may end in .gz or .zst.

    Raises:
      DataError: for a source without files or documents, a truncated or corrupt file, invalid
        UTF-8, a malformed line, a missing or non-text field, a document without text.
    """
    if source.kind not in _READERS:
        raise DataError(
            f"source {source.path}: kind {source.kind!r} cannot be read as text; valid kinds are: "
            + ", ".join(_READERS)
        )
    count = 0
    for file in source_files(source):
        for document in _READERS[source.kind](file, source.text_key):
            if not document.text:
                raise DataError(
                    f"{_place(file, document)}: the document has no text; remove it from the source"
                )
            count += 1
            yield document
    if not count:
        raise DataError(f"source {source.path} ({source.kind}): holds no document")


def _place(file: SourceFile, document: Document) -> str:
    return f"{file.path}{document.id[len(file.name) :]}"


# --- text and JSONL ---------------------------------------------------------------------------


def _read_text(file: SourceFile, text_key: str) -> Iterator[Document]:
    yield Document(file.name, _utf8(b"".join(_chunks(file.path)), str(file.path)))


def _read_jsonl(file: SourceFile, text_key: str) -> Iterator[Document]:
    for number, line in enumerate(_lines(_chunks(file.path)), start=1):
        where = f"{file.path}:{number}"
        text = _utf8(line, where)
        try:
            value = parse_json(text)
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits raises ValueError
            what = "the line is empty" if not text.strip() else f"malformed JSON ({error})"
            raise DataError(f"{where}: {what}; every line must be one JSON object") from None
        if not isinstance(value, dict):
            raise DataError(f"{where}: the line is a JSON {type(value).__name__}, not an object")
        if text_key not in value:
            keys = ", ".join(map(str, value)) or "none"
            raise DataError(f"{where}: there is no key {text_key!r}; the keys are: {keys}")
        yield Document(f"{file.name}:{number}", _text(value[text_key], text_key, where))


def _utf8(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8", errors="strict")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: invalid UTF-8 at byte {error.start} ({error.reason}); "
            "convert the file to UTF-8"
        ) from None


def _text(value: Any, key: str, where: str) -> str:
    """Checks that a field's value is text that UTF-8 can encode."""
    if isinstance(value, bytes):
        return _utf8(value, where)
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


def _chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, decompressed according to its suffix; raises if it is truncated."""
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


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
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


# --- parquet and ArrayRecord ------------------------------------------------------------------


def _read_parquet(file: SourceFile, text_key: str) -> Iterator[Document]:
    parquet = require_module("pyarrow.parquet", "data", f"reading {file.path}")
    arrow = require_module("pyarrow", "data", f"reading {file.path}")
    row = 0
    try:
        with parquet.ParquetFile(file.path, page_checksum_verification=True) as table:
            names = table.schema_arrow.names
            if text_key not in names:
                raise DataError(
                    f"{file.path}: there is no column {text_key!r}; "
                    f"the columns are: {', '.join(names)}"
                )
            for batch in table.iter_batches(batch_size=256, columns=[text_key]):
                for value in batch.column(0):
                    where = f"{file.path}:{row}"
                    try:
                        value = value.as_py()
                    except UnicodeDecodeError as error:
                        raise DataError(
                            f"{where}: invalid UTF-8 at byte {error.start} of {text_key!r}"
                        ) from None
                    yield Document(f"{file.name}:{row}", _text(value, text_key, where))
                    row += 1
            if row != table.metadata.num_rows:
                raise DataError(
                    f"{file.path}: holds {row} rows, but its footer says "
                    f"{table.metadata.num_rows}; copy it again"
                )
    except (arrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{file.path}: not a readable parquet file ({reason}); copy it again"
        ) from None


def _read_arrayrecord(file: SourceFile, text_key: str) -> Iterator[Document]:
    module = require_module(
        "array_record.python.array_record_module", "data", f"reading {file.path}"
    )
    try:
        reader = module.ArrayRecordReader(str(file.path))
        count = reader.num_records()
        for start in range(0, count, 64):
            stop = min(start + 64, count)
            records = reader.read(start, stop)
            if len(records) != stop - start:
                raise RuntimeError(f"records {start} to {stop} are incomplete")
            for index, record in enumerate(records, start):
                yield Document(f"{file.name}:{index}", _utf8(record, f"{file.path}:{index}"))
        reader.close()
    except (RuntimeError, ValueError, IndexError, OSError) as error:
        reason = " ".join(str(error).split()) or "truncated or corrupt"
        raise DataError(
            f"{file.path}: not a readable ArrayRecord file ({reason}); copy it again"
        ) from None


_READERS = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "arrayrecord": _read_arrayrecord,
}
