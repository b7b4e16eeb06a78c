"""Records as pandas tables, and tables as records: the two forms of a table here.

Reports and figures work on records (lists of flat dicts), so that a run can write its report where
pandas is not installed; notebooks want tables. Figures take either.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from hybridlm.errors import UserError

Record = dict[str, Any]
Table = Any  # a pandas DataFrame, or records


def frame(records: Iterable[Record], columns: Iterable[str] = ()) -> Any:
    """Records as a typed table: a row each, a column for each key, in the order of appearance.

    Whole numbers are int64 (Int64 where some are missing), other numbers float64, truth values bool
    (boolean), texts strings. Records without rows give an empty table.

    Args:
      columns: those that the table has also without rows, first.

    Raises:
      UserError: if pandas is not installed.
    """
    pandas = _pandas()
    records = list(records)
    keys = list(dict.fromkeys([*columns, *(key for record in records for key in record)]))
    series = {}
    for key in keys:
        values = [record.get(key) for record in records]
        series[key] = pandas.Series(values, dtype=_dtype(values))
    return pandas.DataFrame(series, columns=keys)


def records_of(table: Table) -> list[Record]:
    """A table as records, with None for what is missing; records are returned as they are."""
    if not hasattr(table, "to_dict"):
        return list(table)
    pandas = _pandas()
    found = table.astype(object).where(pandas.notna(table), None).to_dict("records")
    # pandas has one sign for what is missing and for what is not a number: only floats have both.
    floats = {name for name, dtype in table.dtypes.items() if str(dtype) == "float64"}
    return [
        {k: math.nan if v is None and k in floats else v for k, v in record.items()}
        for record in found
    ]


def _dtype(values: Sequence[Any]) -> str:
    present = [value for value in values if value is not None]
    missing = len(present) < len(values)
    if not present:
        return "object"
    if all(isinstance(value, bool) for value in present):
        return "boolean" if missing else "bool"
    if all(isinstance(value, int) and not isinstance(value, bool) for value in present):
        return "Int64" if missing else "int64"
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        return "float64"
    return "str" if all(isinstance(value, str) for value in present) else "object"


def _pandas() -> Any:
    try:
        import pandas
    except ModuleNotFoundError:
        raise UserError(
            "tables need pandas: pip install 'hybridlm[analysis]' (the records themselves, in"
            " hybridlm.analysis.rows, need nothing)"
        ) from None
    return pandas
