"""A plain table of scores of models with one layer replaced: CSV, a row a layer."""

import csv
import dataclasses
import io
import math
import pathlib
import re
from collections.abc import Mapping, Sequence

from hybridlm.distill.selection.budget import Kept
from hybridlm.distill.selection.evaluations import Metric, Search, Values
from hybridlm.errors import DataError, UserError

LAYER = "layer"


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """Columns of numbers over layers 0 to L - 1.

    Attributes:
      columns: by name, a value for each layer. A column "kl" is of the student with that layer alone
        restored; every other column is of the teacher with that layer alone replaced.
    """

    path: pathlib.Path
    columns: Mapping[str, Sequence[float]]
    depth: int

    def search(self) -> Search:
        """The table as what selectors read; it answers for single layers only."""
        layers = tuple(range(self.depth))
        metrics = {name: Metric(name, higher=name != "kl") for name in self.columns}
        return Search(self.depth, layers, self._values, metrics)

    def _values(self, kept: Kept, metric: str) -> Values:
        own = kept if metric == "kl" else frozenset(range(self.depth)) - kept
        if len(own) != 1:
            raise UserError(f"{self.path} has scores of single layers, and none of {len(own)}")
        (layer,) = own
        return (self.columns[metric][layer],)


def read_scores(path: pathlib.Path, needed: Sequence[str]) -> ScoreTable:
    """Reads a CSV file with a header; columns that are not needed are not read.

    Args:
      needed: the columns beside `layer`.

    Raises:
      DataError: one sentence: a column is missing, a cell is empty or is not a finite number, or a
        layer has no row or two.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: invalid byte {error.start}") from None
    lines = csv.reader(io.StringIO(text, newline=""))
    try:
        rows = [(lines.line_num, [cell.strip() for cell in row]) for row in lines]
    except csv.Error as error:
        raise DataError(f"{path}, line {lines.line_num}: {error}") from None
    rows = [(number, row) for number, row in rows if any(row)]
    if not rows:
        raise DataError(f"{path} is empty: it needs a header with {_listed(needed)}")
    (_, header), *body = rows
    _check_header(path, header, needed)
    if not body:
        raise DataError(f"{path} has a header and no row: it needs a row for each layer")
    places = {name: header.index(name) for name in (LAYER, *needed)}
    found: dict[int, tuple[int, list[float]]] = {}
    for number, row in body:
        if len(row) != len(header):
            raise DataError(
                f"{path}, line {number} has {len(row)} values, and the header {len(header)}"
            )
        layer = _layer(path, number, row[places[LAYER]])
        if layer in found:
            raise DataError(
                f"{path} has layer {layer} twice, in lines {found[layer][0]} and {number}: leave one"
                " row a layer"
            )
        values = [_number(path, number, layer, name, row[places[name]]) for name in needed]
        found[layer] = number, values
    missing = [i for i in range(max(found) + 1) if i not in found]
    if missing:
        shown = ", ".join(map(str, missing[:8])) + (", ..." if missing[8:] else "")
        raise DataError(
            f"{path} has no row for layer {shown}: it needs one for every layer from 0 to"
            f" {max(found)}"
        )
    columns = {name: [found[i][1][c] for i in range(len(found))] for c, name in enumerate(needed)}
    return ScoreTable(path, columns, len(found))


def _check_header(path: pathlib.Path, header: list[str], needed: Sequence[str]) -> None:
    for name in (LAYER, *needed):
        if name not in header:
            raise DataError(
                f"{path} has no column {name!r}: its columns are {', '.join(header)}, and needed are"
                f" {_listed(needed)}"
            )
        if header.count(name) > 1:
            raise DataError(f"{path} has the column {name!r} {header.count(name)} times")


def _layer(path: pathlib.Path, number: int, cell: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", cell, re.ASCII):
        raise DataError(
            f"{path}, line {number}: a layer must be a whole number from 0, not {cell!r}"
        )
    return int(cell)


def _number(path: pathlib.Path, number: int, layer: int, name: str, cell: str) -> float:
    where = f"{path}, line {number} (layer {layer})"
    if not cell:
        raise DataError(f"{where} has no {name}: every layer needs one")
    try:
        if "_" in cell or not cell.isascii():  # which Python takes, and no spreadsheet writes
            raise ValueError
        value = float(cell)
    except ValueError:
        raise DataError(f"{where}: {name} must be a number, not {cell!r}") from None
    if not math.isfinite(value):
        raise DataError(f"{where}: {name} is {cell}, and must be finite")
    return value


def _listed(needed: Sequence[str]) -> str:
    *rest, last = (LAYER, *needed)
    return f"{', '.join(rest)} and {last}" if rest else last
