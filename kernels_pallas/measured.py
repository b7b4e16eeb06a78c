"""For which calls a kernel was measured to be right and the fastest form, on which chip.

"auto" leaves a kernel with `Backend(auto=False)` alone, except where a row of the table covers the call.
The table is `measured.json` beside this file; `python -m benchmarks.gpu_visit learn` writes it from what
it measured. A row holds for one chip, and for the features of a call that it lists: a call with another
feature, another value or a length outside the row is not covered.
"""

import contextlib
import contextvars
import functools
import importlib.resources
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

#: A feature's value that stands for every value.
ANY = {"any": True}
_TABLE = contextvars.ContextVar("table", default=None)


class Row(NamedTuple):
    """One class of calls for which `backend` is right and the fastest form.

    Attributes:
      op: the name that the op gives to `dispatch.resolve`; None is every op.
      backend: of the op's support table; None is every kernel.
      chip: the device kind as jax names it ("NVIDIA H200"); None is every chip.
      case: for each feature of a call its value, {"from": a, "to": b} for the integers from a to b, or
        `ANY`; None is every case.
      tokens: least and greatest length of a row of tokens; None is every length.
      speedup: how many times as fast as the chunked form, forward and backward; None if not measured.
      measured: date and versions.
    """

    op: str | None
    backend: str | None
    chip: str | None
    case: Mapping[str, Any] | None
    tokens: tuple[int, int] | None
    speedup: float | None = None
    measured: str = ""

    def covers(
        self, op: str, backend: str, chip: str | None, case: Mapping[str, Any], tokens: int | None
    ) -> bool:
        """Whether the row holds for this call; False where the chip or the length is unknown and
        the row names one."""
        named = ((self.op, op), (self.backend, backend), (self.chip, chip))
        if any(wanted not in (None, given) for wanted, given in named):
            return False
        if self.tokens is not None:
            least, greatest = self.tokens
            if tokens is None or not least <= tokens <= greatest:
                return False
        return self.case is None or all(
            feature in self.case and _is_in(value, self.case[feature])
            for feature, value in case.items()
        )


def _is_in(value: Any, wanted: Any) -> bool:
    if not isinstance(wanted, Mapping):
        return type(value) is type(wanted) and value == wanted
    if wanted == ANY:
        return True
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return is_number and wanted["from"] <= value <= wanted["to"]


#: For measurements: "auto" takes every kernel that covers the call.
EVERY_KERNEL = (Row(None, None, None, None, None),)


@functools.cache
def committed() -> tuple[Row, ...]:
    """The rows of `measured.json`."""
    text = importlib.resources.files("kernels_pallas").joinpath("measured.json").read_text()
    return tuple(of_json(json.loads(text)))


def of_json(rows: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """The rows that `to_json` wrote."""
    for row in rows:
        tokens = row["tokens"]
        yield Row(**{**row, "tokens": None if tokens is None else tuple(tokens)})


def to_json(rows: Sequence[Row]) -> str:
    """The text of a table, a row a line."""
    lines = [json.dumps(row._asdict(), allow_nan=False) for row in rows]
    return "[" + ",".join(f"\n {line}" for line in lines) + "\n]\n"


@contextlib.contextmanager
def table(rows: Sequence[Row]) -> Iterator[None]:
    """Ops traced inside use these rows instead of the committed ones."""
    token = _TABLE.set(tuple(rows))
    try:
        yield
    finally:
        _TABLE.reset(token)


def rows_of(op: str, backend: str) -> list[Row]:
    """The rows in use that name this kernel, or every one."""
    rows = _TABLE.get()
    found = committed() if rows is None else rows
    return [row for row in found if row.op in (None, op) and row.backend in (None, backend)]
