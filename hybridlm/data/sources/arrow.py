"""Sources of kind "arrow": Hugging Face datasets on disk, and other Arrow files.

A folder that `datasets.Dataset.save_to_disk` wrote has state.json, which lists the data files in
order, dataset_info.json and data-*.arrow, streams of record batches. Neither `datasets` nor a copy
is needed: pyarrow maps the batches into memory.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hybridlm.data.document_index import Documents
from hybridlm.data.examples import Document
from hybridlm.data.files import SourceFile, require_module, source_files
from hybridlm.data.sources.columns import ColumnSource, id_lists
from hybridlm.data.sources.text_source import field_text
from hybridlm.data.store import Opening
from hybridlm.data.token_stream import Segment, TokenStream
from hybridlm.errors import DataError
from hybridlm.settings.bounds import settings
from hybridlm.settings.json_text import parse_json
from hybridlm.storage import is_remote, objects

_STATE, _SPLITS = "state.json", "dataset_dict.json"
_END = b"\xff\xff\xff\xff\0\0\0\0"  # the mark at the end of a stream


@settings
class ArrowTable(ColumnSource):
    """Hugging Face datasets on disk (the folder of `save_to_disk`), or Arrow files (streams or IPC
    files); one document per row. Ids are read where they are.
    """

    kind_name = "arrow"
    needs = ("pyarrow",)

    def files(self, path: str) -> list[SourceFile]:
        folder = Path(path).expanduser()

        def read(name: str) -> bytes | None:
            return (folder / name).read_bytes() if (folder / name).is_file() else None

        names = _data_files(str(folder), read)
        if names is None:
            return source_files(path)
        for name in names:
            if not (folder / name).is_file():
                raise DataError(f"{folder / name}: is named in {_STATE} and missing; copy it again")
        return [SourceFile(name, folder / name) for name in names]

    def find(self, path: str) -> list[str]:
        found = super().find(path)
        if not is_remote(path):
            return found
        folder = path.rstrip("/")

        def read(name: str) -> bytes | None:
            return objects.read(f"{folder}/{name}") if name in found else None

        if missing := set(_data_files(folder, read) or ()).difference(found):
            name = f"{folder}/{min(missing)}"
            raise DataError(f"{name}: is named in {_STATE} and missing; copy it again")
        return found

    def read_file(self, file: SourceFile) -> Iterator[Document]:
        row = 0
        for column in _batches(file.path, self.text_key):
            for value in column:
                where = f"{file.path}:{row}"
                try:
                    value = value.as_py()
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{where}: invalid UTF-8 at byte {error.start} of {self.text_key!r}"
                    ) from None
                yield Document(f"{file.name}:{row}", field_text(value, self.text_key, where))
                row += 1

    def read_store(self, path: str, opening: Opening) -> Documents:
        files = self.files(path)
        segments = [segment for segment, _ in self._lists(files)]
        hint = "; open it with the tokenizer that wrote it"
        stream = TokenStream(segments, opening.tokenizer.vocab_size, hint)
        if not stream.tokens:
            raise DataError(f"source {path}: holds no token")
        return Documents(files, stream, lambda: self._ends(files))

    def _lists(self, files: list[SourceFile]) -> Iterator[tuple[Segment, np.ndarray]]:
        """The ids of each record batch, and where its lists end in it."""
        for file in files:
            arrow = require_module("pyarrow", "data", f"reading {file.path}")
            place, row = 0, 0
            for column in _batches(file.path, self.ids_key, mapped=True):
                ids, ends = id_lists(arrow, column, self.ids_key, f"{file.path}:{row}")
                yield Segment(ids, file.path, place), ends
                place, row = place + len(ids), row + len(column)

    def _ends(self, files: list[SourceFile]) -> Iterator[np.ndarray]:
        before = 0
        for segment, ends in self._lists(files):
            yield ends + before
            before += len(segment.ids)


def _data_files(folder: str, read: Callable[[str], bytes | None]) -> list[str] | None:
    """Names of the data files of a saved dataset, in order; None if the folder is not one.

    Args:
      read: the content of a file of the folder; None without such a file.
    """
    if (content := read(_SPLITS)) is not None:
        splits = _json(content, f"{folder}/{_SPLITS}").get("splits") or ["none"]
        raise DataError(
            f"{folder}: holds the splits {', '.join(map(str, splits))}: set path to one of them, as"
            f" {folder}/{splits[0]}"
        )
    if (content := read(_STATE)) is None:
        return None
    state = _json(content, f"{folder}/{_STATE}")
    if state.get("_indices_data_files"):
        raise DataError(
            f"{folder}: has an order of rows beside its data; save it again after flatten_indices()"
        )
    names = [entry["filename"] for entry in state.get("_data_files") or []]
    if not names:
        raise DataError(f"{folder}/{_STATE}: names no data file")
    return names


def _json(content: bytes, path: str) -> dict[str, Any]:
    try:
        value = parse_json(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: malformed JSON ({error}); copy it again") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: is not a JSON object; copy it again")
    return value


def _batches(path: Path, key: str, mapped: bool = False) -> Iterator[Any]:
    """The column `key` of each record batch (`pyarrow.Array`).

    Raises:
      DataError: if the file is damaged, lacks the column, or has not the batches that its end says.
    """
    arrow = require_module("pyarrow", "data", f"reading {path}")
    if not path.stat().st_size:
        raise DataError(f"{path}: the file has 0 bytes; copy it again, or remove it")
    try:
        source = arrow.memory_map(str(path))
        whole = source.read_buffer()
        low, high = whole.address, whole.address + whole.size
        source.seek(0)
        stream = whole[:6].to_pybytes() != b"ARROW1"
        if stream:
            batches = reader = arrow.ipc.open_stream(source)
        else:
            reader = arrow.ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        names = reader.schema.names
        if key not in names:
            raise DataError(
                f"{path}: there is no column {key!r}; the columns are: {', '.join(names)}"
            )
        for batch in batches:
            batch.validate()  # lengths and sizes, before anything is read by them
            column = batch.column(names.index(key))
            column.validate(full=True)  # where each row begins and ends, and UTF-8
            buffers = [b for b in column.buffers() if b is not None and b.size]
            if mapped and not all(low <= b.address < high for b in buffers):
                raise DataError(f"{path}: is compressed: save it again without compression")
            yield column
        if stream and whole[-8:].to_pybytes() != _END:
            raise DataError(f"{path}: is truncated after a record batch; copy it again")
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable Arrow file ({reason}); copy it again") from None
