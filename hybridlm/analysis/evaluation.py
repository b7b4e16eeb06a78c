"""Tables and figures from the records of an evaluation."""

import pathlib
from collections.abc import Sequence
from typing import Any

from hybridlm.analysis.figures import needle_map, task_map
from hybridlm.analysis.rows import RECORDS, read_evaluation
from hybridlm.evals.registry import TASKS
from hybridlm.evals.scoring import accuracy_table
from hybridlm.evals.task import Record


def table(records: Sequence[Record]) -> str:
    """All records as text: accuracies in per cent by task and length, then the other figures."""
    parts = []
    accuracies = _rows(records, "accuracy")
    if accuracies:
        parts.append(accuracy_table("accuracy, %", accuracies))
    for task in TASKS.values():
        chosen = [r for r in records if r["task"] == task.name and "accuracy" not in r]
        if chosen:
            figures = (r[task.figure] for r in chosen)
            cells = ("none" if figure is None else f"{figure:.4f}" for figure in figures)
            lines = [f"{task.title:<14}" + "".join(f"{r['length']:>12,}" for r in chosen)]
            parts.append("\n".join([*lines, " " * 14 + "".join(f"{c:>12}" for c in cells)]))
    return "\n\n".join(parts)


def figures(records: Sequence[Record]) -> dict[str, Any]:
    """Heat maps by name: "needle" by depth and length, "tasks" by task and length."""
    made = {}
    cells = [
        {"length": r["length"], **cell}
        for r in records
        if r["task"] == "needle"
        for cell in r["by_depth"]
    ]
    if cells:
        made["needle"] = needle_map(cells)
    if any("accuracy" in r for r in records):
        made["tasks"] = task_map(records)
    return made


def read(folder: pathlib.Path) -> Record:
    """Reads the `step`, `settings` and `records` that `hybridlm eval` wrote into a folder."""
    return read_evaluation(folder / RECORDS)


def _rows(records: Sequence[Record], key: str) -> dict[str, dict[int, float]]:
    rows: dict[str, dict[int, float]] = {}
    for record in records:
        if key in record:
            rows.setdefault(record["task"], {})[record["length"]] = record[key]
    return rows
