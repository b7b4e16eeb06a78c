"""The base of sources in columns, which hold either text or token ids; and checks of id columns."""

from typing import Annotated, Any

import numpy as np

from hybridlm.data.sources.text_source import TextSource
from hybridlm.data.sources.token_source import TokenSource
from hybridlm.data.store import Opening, TokenStore
from hybridlm.errors import DataError
from hybridlm.settings.bounds import NotEmpty, settings
from hybridlm.settings.reader import require


@settings
class ColumnSource(TextSource, TokenSource):
    """Rows with a column of text or of token ids; each row is a document.

    Attributes:
      text_key: the column that holds the text.
      ids_key: the column that holds lists of token ids; None reads text.
    """

    text_key: Annotated[str, NotEmpty()] = "text"
    ids_key: Annotated[str, NotEmpty()] | None = None

    def __post_init__(self):
        for name in ("heldout_path", "add_bos", "add_eos"):
            require(
                self.ids_key is not None or not getattr(self, name),
                name,
                "goes with ids_key: text gets BOS and EOS, and is held out by its hash",
            )

    @property
    def read_key(self) -> str:
        return self.text_key

    def format_settings(self) -> dict[str, Any]:
        return super().format_settings() | {"ids_key": self.ids_key}

    def open(self, opening: Opening) -> TokenStore:
        family = TextSource if self.ids_key is None else TokenSource
        return family.open(self, opening)


def id_lists(arrow: Any, column: Any, key: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a column of lists, and where each list ends.

    Args:
      arrow: the module pyarrow.
      column: a `pyarrow.Array` of lists of integers.
      where: the file, and the row at which the column begins, for messages.

    Returns:
      ids: (tokens,) of the column's own integer type; shares the column's memory.
      ends: int64 (rows,).
    """
    kind = column.type
    lists = (arrow.types.is_list, arrow.types.is_large_list, arrow.types.is_fixed_size_list)
    if not any(check(kind) for check in lists) or not arrow.types.is_integer(kind.value_type):
        raise DataError(f"{where}: column {key!r} has type {kind}, and not lists of integers")
    if column.null_count:
        raise DataError(f"{where}: column {key!r} has {column.null_count} rows that are null")
    values = column.flatten()
    if values.null_count:
        raise DataError(f"{where}: column {key!r} has ids that are null")
    if arrow.types.is_fixed_size_list(kind):
        ends = np.arange(1, len(column) + 1, dtype=np.int64) * kind.list_size
    else:
        offsets = column.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
        ends = offsets[1:] - offsets[0]
    return values.to_numpy(zero_copy_only=True), ends
