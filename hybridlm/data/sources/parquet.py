"""Sources of kind "parquet": one document per row, of text or of token ids."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hybridlm.data.document_index import Documents
from hybridlm.data.examples import Document
from hybridlm.data.files import SourceFile, map_ids, new_folder, require_module, source_files
from hybridlm.data.shards import token_dtype
from hybridlm.data.sources.columns import ColumnSource, id_lists
from hybridlm.data.sources.text_source import field_text
from hybridlm.data.store import Opening
from hybridlm.data.token_stream import Segment, TokenStream
from hybridlm.errors import DataError
from hybridlm.settings.bounds import settings
from hybridlm.storage.writing import writing

_INT64 = np.dtype("<i8")
_ENDS = 1 << 16  # ends of documents read at once


@settings
class ParquetFiles(ColumnSource):
    """Parquet files, one document per row. Ids are copied into the token cache once, because the
    format cannot be read by index where it is.
    """

    kind_name = "parquet"
    needs = ("pyarrow",)

    def read_file(self, file: SourceFile) -> Iterator[Document]:
        key, row = self.text_key, 0
        for column in _batches(file.path, key):
            for value in column:
                where = f"{file.path}:{row}"
                try:
                    value = value.as_py()
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{where}: invalid UTF-8 at byte {error.start} of {key!r}"
                    ) from None
                yield Document(f"{file.name}:{row}", field_text(value, key, where))
                row += 1

    def read_store(self, path: str, opening: Opening) -> Documents:
        files, vocab_size = source_files(path), opening.tokenizer.vocab_size
        dtype = token_dtype(vocab_size)
        described = [(f.name, f.path.stat().st_size, f.path.stat().st_mtime_ns) for f in files]
        text = json.dumps(["ids", self.ids_key, vocab_size, described], allow_nan=False)
        folder = opening.folder(hashlib.sha256(text.encode()).hexdigest())
        if not folder.exists():
            with writing(folder), new_folder(folder) as partial:
                _copy_ids(files, self.ids_key, dtype, vocab_size, partial)
        stream = TokenStream(
            [Segment(map_ids(folder / "tokens.bin", dtype), folder / "tokens.bin")], vocab_size
        )
        ends = map_ids(folder / "tokens.ends", _INT64)
        if not stream.tokens:
            raise DataError(f"source {path}: holds no token")
        if not len(ends) or int(ends[-1]) != stream.tokens:
            raise DataError(f"{folder}: is truncated; remove the folder")
        chunks = range(0, len(ends), _ENDS)
        return Documents(files, stream, lambda: (np.asarray(ends[i : i + _ENDS]) for i in chunks))


def _copy_ids(
    files: list[SourceFile], key: str, dtype: np.dtype, vocab_size: int, folder: Path
) -> None:
    """Writes the ids of all rows, and the token at which each row ends."""
    arrow, before = require_module("pyarrow", "data", "reading parquet"), 0
    with open(folder / "tokens.bin", "wb") as tokens, open(folder / "tokens.ends", "wb") as places:
        for file in files:
            row, place = 0, 0
            for column in _batches(file.path, key):
                ids, ends = id_lists(arrow, column, key, f"{file.path}:{row}")
                hint = "; open it with the tokenizer that wrote it"
                checked = TokenStream([Segment(ids, file.path, place)], vocab_size, hint)
                tokens.write(checked.read(0, len(ids)).astype(dtype).tobytes())
                places.write((ends + before).astype(_INT64).tobytes())
                row, place, before = row + len(column), place + len(ids), before + len(ids)


def _batches(path: Path, key: str) -> Iterator[Any]:
    """The column `key` in batches of rows (`pyarrow.Array`)."""
    parquet = require_module("pyarrow.parquet", "data", f"reading {path}")
    arrow = require_module("pyarrow", "data", f"reading {path}")
    row = 0
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as table:
            names = table.schema_arrow.names
            if key not in names:
                raise DataError(
                    f"{path}: there is no column {key!r}; the columns are: {', '.join(names)}"
                )
            for batch in table.iter_batches(batch_size=256, columns=[key]):
                yield batch.column(0)
                row += len(batch)
            if row != table.metadata.num_rows:
                raise DataError(
                    f"{path}: holds {row} rows, but its footer says "
                    f"{table.metadata.num_rows}; copy it again"
                )
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable parquet file ({reason}); copy it again") from None
