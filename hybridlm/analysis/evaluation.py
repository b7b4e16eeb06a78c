"""Tables and figures from the records of an evaluation."""

import pathlib
from collections.abc import Sequence
from typing import Any

from hybridlm.analysis.figures import heat_map_figure
from hybridlm.evals.registry import TASKS
from hybridlm.evals.scoring import accuracy_table
from hybridlm.evals.task import Record
from hybridlm.runs.json_files import read_json

RECORDS = "eval.json"


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
    needles = [r for r in records if r["task"] == "needle"]
    if needles:
        rows = {
            f"{cell['depth']:g}%": {
                r["length"]: c["accuracy"]
                for r in needles
                for c in r["by_depth"]
                if c["depth"] == cell["depth"]
            }
            for cell in needles[0]["by_depth"]
        }
        made["needle"] = heat_map_figure(rows, "Needle in a haystack", "depth of the needle")
    accuracies = _rows(records, "accuracy")
    if accuracies:
        made["tasks"] = heat_map_figure(accuracies, "Accuracy by task and length", "")
    return made


def read(folder: pathlib.Path) -> Record:
    """Reads the `step`, `settings` and `records` that `hybridlm eval` wrote into a folder."""
    return read_json(folder / RECORDS)


def _rows(records: Sequence[Record], key: str) -> dict[str, dict[int, float]]:
    rows: dict[str, dict[int, float]] = {}
    for record in records:
        if key in record:
            rows.setdefault(record["task"], {})[record["length"]] = record[key]
    return rows
