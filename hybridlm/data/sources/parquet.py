"""Sources of kind "parquet": one document per row."""

from collections.abc import Iterator
from typing import Annotated

from hybridlm.data.files import SourceFile, require_module
from hybridlm.data.source import Document
from hybridlm.data.sources.text_source import TextSource, field_text
from hybridlm.errors import DataError
from hybridlm.settings.bounds import NotEmpty, settings


@settings
class ParquetFiles(TextSource):
    """Parquet files, one document per row.

    Attributes:
      text_key: the column that holds the text.
    """

    kind_name = "parquet"

    text_key: Annotated[str, NotEmpty()] = "text"

    @property
    def read_key(self) -> str:
        return self.text_key

    def read_file(self, file: SourceFile) -> Iterator[Document]:
        parquet = require_module("pyarrow.parquet", "data", f"reading {file.path}")
        arrow = require_module("pyarrow", "data", f"reading {file.path}")
        key, row = self.text_key, 0
        try:
            with parquet.ParquetFile(file.path, page_checksum_verification=True) as table:
                names = table.schema_arrow.names
                if key not in names:
                    raise DataError(
                        f"{file.path}: there is no column {key!r}; "
                        f"the columns are: {', '.join(names)}"
                    )
                for batch in table.iter_batches(batch_size=256, columns=[key]):
                    for value in batch.column(0):
                        where = f"{file.path}:{row}"
                        try:
                            value = value.as_py()
                        except UnicodeDecodeError as error:
                            raise DataError(
                                f"{where}: invalid UTF-8 at byte {error.start} of {key!r}"
                            ) from None
                        yield Document(f"{file.name}:{row}", field_text(value, key, where))
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
