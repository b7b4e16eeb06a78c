"""The result of a probe: rows of one dataclass, with the probe's name, definition and source."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

Record = dict[str, Any]
FILE = "probes.jsonl"
NOT_FINITE = "the model is not finite (NaN or infinity) on these prompts"


class Head(NamedTuple):
    """An attention head; layers count from 0 at the bottom, heads from 0 within their layer."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}"


@dataclasses.dataclass(frozen=True)
class Table[RowT]:
    """The result of one probe on one model.

    Attributes:
      probe: the probe's name in `hybridlm probe --probes`.
      definition: one sentence that says what was measured.
      source: the source of the definition.
      entries: dataclass instances, all of one type.
    """

    probe: str
    definition: str
    source: str
    entries: tuple[RowT, ...]

    def __iter__(self) -> Iterator[RowT]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def rows(self) -> list[Record]:
        """The entries as plain dicts."""
        return [dataclasses.asdict(entry) for entry in self.entries]

    def records(self, step: int | None) -> list[Record]:
        """The entries as lines of `probes.jsonl`: `kind` is the probe's name."""
        return [{"kind": self.probe, "step": step, **row} for row in self.rows()]

    def broken(self) -> int:
        """The number of entries whose main figure, the first that is a float, is not finite."""
        return sum(not math.isfinite(_main_figure(entry)) for entry in self.entries)

    def text(self) -> str:
        """The table for a terminal: the definition, a header and a line for each entry."""
        lines = [f"{self.probe}: {self.definition}"]
        if broken := self.broken():
            lines.append(f"({broken} of {len(self)} entries have no figure: {NOT_FINITE})")
        if not self.entries:
            return "\n".join([*lines, "(nothing to measure in this model)"])
        names = [field.name for field in dataclasses.fields(self.entries[0])]
        cells = [[_cell(getattr(entry, name)) for name in names] for entry in self.entries]
        widths = [max(map(len, column)) for column in zip(names, *cells)]
        for row in (names, *cells):
            lines.append("  ".join(cell.rjust(width) for cell, width in zip(row, widths)))
        return "\n".join(lines)


def _main_figure(entry: Any) -> float:
    return next(value for value in vars(entry).values() if isinstance(value, float))


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "-"
    return str(value)
