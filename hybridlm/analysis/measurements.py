"""What was measured last, of tables that also hold measurements of earlier checkpoints."""

from collections.abc import Iterable, Sequence
from typing import Any

from hybridlm.analysis.tables import Record, Table, records_of

RAW = "raw"


def newest(table: Table, weights: str | None = None) -> Table:
    """The rows of the newest checkpoint, for each run, task and length.

    Args:
      table: as `evaluations()` or `by_depth()`, of one run or of several; columns step and weights
        may be missing.
      weights: "raw" or "ema" (the moving average); by default the raw ones, or the others where the
        table has no raw ones.

    Returns:
      The rows in their order, a pandas table of a pandas table. If one step was measured several
      times, they are those of the folder that is last in the table.
    """
    rows = records_of(table)
    weights = _default(rows) if weights is None else weights
    chosen: dict[Any, tuple[int, Any]] = {}
    for row in rows:
        key, found = _what(row), _measured(row)
        if (row.get("weights") or RAW) == weights and (
            key not in chosen or found[0] >= chosen[key][0]
        ):
            chosen[key] = found
    kept = [
        i
        for i, row in enumerate(rows)
        if (row.get("weights") or RAW) == weights and chosen[_what(row)] == _measured(row)
    ]
    return _rows(table, kept)


def newest_heads(table: Table) -> Table:
    """The last row of each attention head at each step, for each run: of raw weights, as `newest`.

    Args:
      table: columns step, layer and head, as `probes("retrieval_heads")`.
    """
    rows = records_of(table)
    weights = _default(rows)
    last = {
        tuple(row.get(k) for k in ("run", "step", "layer", "head")): i
        for i, row in enumerate(rows)
        if (row.get("weights") or RAW) == weights
    }
    return _rows(table, sorted(last.values()))


def measured_at(rows: Iterable[Record]) -> str:
    """The steps and the weights of rows, for a title: "step 10,000, raw weights"."""
    rows = list(rows)
    steps = sorted({row["step"] for row in rows if row.get("step") is not None})
    kinds = sorted({row.get("weights") or RAW for row in rows})
    said = [f"{' and '.join(kinds)} weights"]
    if steps:
        first, last = (f"{step:,}" for step in (steps[0], steps[-1]))
        said.insert(0, f"step {last}" if first == last else f"steps {first} to {last}")
    return ", ".join(said)


def weights_of(rows: Iterable[Record]) -> list[str]:
    """The weights of which there are rows, raw ones first."""
    found = dict.fromkeys(row.get("weights") or RAW for row in rows)
    return sorted(found, key=lambda name: (name != RAW, name))


def _default(rows: Sequence[Record]) -> str:
    return next(iter(weights_of(rows)), RAW)


def _what(row: Record) -> tuple[Any, ...]:
    return row.get("run"), row.get("task"), row.get("length")


def _measured(row: Record) -> tuple[int, Any]:
    """(step, folder); a model folder may name no step."""
    step = row.get("step")
    return (-1 if step is None else step), row.get("folder")


def _rows(table: Table, kept: list[int]) -> Table:
    return table.iloc[kept] if hasattr(table, "iloc") else [table[i] for i in kept]
