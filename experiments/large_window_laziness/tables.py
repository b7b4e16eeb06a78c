"""The committed tables: one row per measurement (curves.tsv) and per run (runs.tsv)."""

import csv
import io
import pathlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.large_window_laziness.statistics import Time, first_crossing
from hybridlm.settings import json_text
from hybridlm.storage.writing import make_folder, write_text

TOP_K = 2  # number of heads in the table: those with the largest final score
FORMED = 0.5  # accuracy at the largest distances at which retrieval has formed
DISTANCES = tuple(f"accuracy_{i}" for i in range(1, 6))  # ranges of `CopyTask.bins`, nearest first
CURVE = (
    "arm",
    "seed",
    "step",
    *DISTANCES,
    "local_nll",
    "copied_nll",
    "mass",
    "copy",
    "entropy",
    "qk_distance",
)
RUNS = ("arm", "seed", "steps", "formed_step", "formed", "cpu_seconds", "wall_seconds")

Row = dict[str, float | str | int]


class Curve(NamedTuple):
    """The N measurements of one run.

    Attributes:
      steps: (N,).
      values: (N,) for each column of `CURVE`.
    """

    arm: str
    seed: int
    steps: np.ndarray
    values: dict[str, np.ndarray]

    @property
    def far(self) -> np.ndarray:
        """Accuracy at the largest distances."""
        return self.values[DISTANCES[-1]]

    @property
    def formed(self) -> Time:
        """When retrieval formed."""
        return first_crossing(self.steps, self.far, FORMED)

    def area(self, column: str, horizon: float) -> float:
        """Mean of a column over the steps up to `horizon` (trapezoids)."""
        kept = self.steps <= horizon
        steps, values = self.steps[kept], self.values[column][kept]
        return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


def collect(workdir: pathlib.Path) -> tuple[list[Row], list[Row]]:
    """(rows of curves.tsv, rows of runs.tsv) of all completed runs."""
    curves, runs = [], []
    for done in sorted(workdir.glob("*/*/done.json")):
        facts = json_text.loads(done.read_text())
        records = [json_text.loads(line) for line in (done.parent / "curve.jsonl").open()]
        rows = _curve_rows(facts["arm"], facts["seed"], records)
        curves += rows
        formed = read_curves(rows)[0].formed
        runs.append(
            {
                "arm": facts["arm"],
                "seed": facts["seed"],
                "steps": facts["steps"],
                "formed_step": int(formed.step),
                "formed": int(formed.seen),
                "cpu_seconds": facts["cpu_seconds"],
                "wall_seconds": facts["wall_seconds"],
            }
        )
    return curves, runs


def _curve_rows(arm: str, seed: int, records: Sequence[dict]) -> list[Row]:
    """Rows of one run; figures of heads are means over the `TOP_K` with the largest final mass."""
    final = sorted(records[-1]["heads"], key=lambda head: -head[2])[:TOP_K]
    followed = {(layer, head) for layer, head, *_ in final}
    rows = []
    for record in records:
        chosen = np.array([h[2:] for h in record["heads"] if tuple(h[:2]) in followed])
        moved = np.mean([h[2] for h in record["qk"] if tuple(h[:2]) in followed])
        mass, copy, entropy = chosen.mean(axis=0)
        rows.append(
            {
                "arm": arm,
                "seed": seed,
                "step": record["step"],
                **dict(zip(DISTANCES, record["accuracy"])),
                **{name: record[name] for name in ("local_nll", "copied_nll")},
                "mass": round(float(mass), 4),
                "copy": round(float(copy), 4),
                "entropy": round(float(entropy), 4),
                "qk_distance": round(float(moved), 4),
            }
        )
    return rows


def read_curves(rows: Iterable[Row]) -> list[Curve]:
    """The runs in a table, in the order of its rows."""
    by_run: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        by_run[str(row["arm"]), int(row["seed"])].append(row)
    curves = []
    for (arm, seed), own in by_run.items():
        values = {name: np.array([float(row[name]) for row in own]) for name in CURVE[2:]}
        curves.append(Curve(arm, seed, values["step"], values))
    return curves


def write(path: pathlib.Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Writes a tab-separated table."""
    make_folder(path.parent)
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, file.getvalue())


def read(path: pathlib.Path) -> list[Row]:
    """The rows of a table, with all values as text."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))
