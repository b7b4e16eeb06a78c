"""The committed tables: a row per measurement (curves.tsv), run (runs.tsv) and influence (influence.tsv)."""

import csv
import io
import pathlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.large_window_laziness.arms import (
    ARMS,
    MAIN,
    SETS,
    Arm,
    ExperimentScale,
    seeds_of,
)
from experiments.large_window_laziness.paired import Time, first_lasting
from experiments.large_window_laziness.runs import FORMED, has_end
from hybridlm.errors import UserError
from hybridlm.settings import json_text
from hybridlm.storage.writing import make_folder, write_text

LENGTHS = ("1x", "2x", "4x")
INFLUENCE = ("arm", "seed", "first", "last", "influence")

Row = dict[str, Any]


def distances(scale: ExperimentScale) -> tuple[str, ...]:
    """Columns of the accuracies by distance, nearest first."""
    return tuple(f"accuracy_{i}" for i in range(1, len(scale.task.bins) + 1))


def curve_columns(scale: ExperimentScale = MAIN) -> tuple[str, ...]:
    """Columns of curves.tsv. mass, copy, entropy and qk_distance are the best head's.

    It is the head of `Arm.searched` with the largest mass at the end.
    """
    losses = ("local_nll", "copied_nll")
    return (
        "arm",
        "seed",
        "step",
        *distances(scale),
        *losses,
        "mass",
        "copy",
        "entropy",
        "qk_distance",
    )


def run_columns(scale: ExperimentScale = MAIN) -> tuple[str, ...]:
    """Columns of runs.tsv; figures of the end are accuracies on far copies.

    `end_version` is that of `endpoint`, empty before it was recorded.
    """
    fields = [str(width) for width in scale.windows]
    return (
        "arm",
        "seed",
        "steps",
        "budget",
        "formed",
        "formed_step",
        "stack_reach",
        *(f"full_sees_{w}" for w in fields),
        *(f"local_sees_{w}" for w in fields),
        "masked_none",
        "masked_retrieval",
        "masked_random",
        *(f"length_{n}" for n in LENGTHS),
        "end_version",
        "best_layer",
        "best_head",
        "far_tokens",
        "cpu_seconds",
        "wall_seconds",
    )


class Run(NamedTuple):
    """A run's rows.

    Attributes:
      curve: by column of curves.tsv, (N,) for N measurements; NaN where a figure is missing.
      facts: its row of runs.tsv, as numbers; NaN where a figure is missing.
    """

    arm: str
    seed: int
    curve: dict[str, np.ndarray]
    facts: dict[str, float]

    @property
    def steps(self) -> np.ndarray:
        return self.curve["step"]

    @property
    def far(self) -> np.ndarray:
        """Accuracy at the largest distances."""
        return self.curve[max(name for name in self.curve if name.startswith("accuracy_"))]

    @property
    def formed(self) -> Time:
        """When retrieval formed."""
        return first_lasting(self.steps, self.far, FORMED)


Runs = dict[str, dict[int, Run]]  # by arm and seed


class Tables(NamedTuple):
    """Rows of curves.tsv, runs.tsv and influence.tsv."""

    curves: list[Row]
    runs: list[Row]
    influence: list[Row]


def collect(workdir: pathlib.Path, scale: ExperimentScale = MAIN) -> Tables:
    """The rows of all complete runs of a folder, in the order of `ARMS`.

    Raises:
      UserError: if the end of a run was measured by an earlier version (see `runs.measure_end`).
    """
    curves, runs, influences = [], [], []
    arms = ARMS[scale.task.name]
    complete = [
        json_text.loads(p.read_text()) | {"folder": p.parent} for p in workdir.glob("*/*/done.json")
    ]
    order = {name: i for i, name in enumerate(arms)}
    for facts in sorted(complete, key=lambda f: (order[f["arm"]], f["seed"])):
        key = {"arm": facts["arm"], "seed": facts["seed"]}
        records = [json_text.loads(line) for line in (facts["folder"] / "curve.jsonl").open()]
        arm = arms[facts["arm"]]
        searched = arm.searched
        best = max((h for h in records[-1]["heads"] if h[0] in searched), key=lambda h: h[2])
        curves += [{**key, **_curve_row(record, scale, best[:2])} for record in records]
        end = facts["end"]
        if end and not has_end(facts):
            raise UserError(
                f"{facts['folder']} has an end of earlier measurements: measure it again with"
                " `run --ends`"
            )
        runs.append({**key, **_run_row(facts, records, arm, best)})
        for first, last, value in end["influence"] if end else ():
            influences.append({**key, "first": first, "last": last, "influence": value})
    return Tables(curves, runs, influences)


def write_tables(folder: pathlib.Path, found: Tables, scale: ExperimentScale = MAIN) -> int:
    """Writes the tables, with the rows of other runs that are in them already, in the order of `ARMS`.

    Rows of arms that the scale no longer has are left out.

    Returns:
      The number of those other runs.
    """
    order = {name: i for i, name in enumerate(ARMS[scale.task.name])}
    new = {run_key(row) for row in found.runs}
    columns = curve_columns(scale), run_columns(scale), INFLUENCE
    kept = 0
    for name, header, rows in zip(Tables._fields, columns, found, strict=True):
        path = folder / f"{name}.tsv"
        old = read(path) if path.exists() else []
        old = [row for row in old if run_key(row) not in new and row["arm"] in order]
        kept = len(old) if name == "runs" else kept
        both = sorted([*old, *rows], key=lambda row: (order[row["arm"]], int(row["seed"])))
        write(path, header, both)
    return kept


def run_key(row: Row) -> tuple[str, int]:
    """The arm and the seed of a row."""
    return row["arm"], int(row["seed"])


def _curve_row(record: Row, scale: ExperimentScale, best: Sequence[int]) -> Row:
    (head,) = [h for h in record["heads"] if h[:2] == best]
    moved = [h[2] for h in record["qk"] if h[:2] == best]
    return {
        "step": record["step"],
        **dict(zip(distances(scale), record["accuracy"], strict=True)),
        **{name: record[name] for name in ("local_nll", "copied_nll")},
        **dict(zip(("mass", "copy", "entropy"), head[2:])),
        "qk_distance": moved[0] if moved else "",
    }


def _run_row(facts: Row, records: Sequence[Row], arm: Arm, best: Sequence[float]) -> Row:
    formed = first_lasting(
        [r["step"] for r in records], [r["accuracy"][-1] for r in records], FORMED
    )
    row = {
        **{name: facts[name] for name in ("steps", "budget", "cpu_seconds", "wall_seconds")},
        "formed": int(formed.seen),
        "formed_step": int(formed.step),
        "stack_reach": arm.stack_reach,
        "best_layer": best[0],
        "best_head": best[1],
        "far_tokens": records[-1]["far_tokens"],
    }
    end = facts["end"]
    if end:
        row["end_version"] = end["version"]
        for group, found in end["restricted"].items():
            row |= {f"{group}_sees_{tokens}": accuracy for tokens, accuracy in found.items()}
        row |= {f"masked_{which}": accuracy for which, accuracy in end["masked"].items()}
        row |= {f"length_{n}x": accuracy for n, accuracy in end["lengths"].items()}
    return row


def read_runs(folder: pathlib.Path) -> list[Run]:
    """The runs of curves.tsv and runs.tsv in a folder, in the order of runs.tsv."""
    by_run: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in read(folder / "curves.tsv"):
        by_run[run_key(row)].append(row)
    found = []
    for row in read(folder / "runs.tsv"):
        key = run_key(row)
        own = by_run[key]
        curve = {
            n: np.array([_number(r[n]) for r in own]) for n in own[0] if n not in ("arm", "seed")
        }
        facts = {n: _number(x) for n, x in row.items() if n not in ("arm", "seed")}
        found.append(Run(*key, curve, facts))
    return found


def by_arm(runs: Iterable[Run]) -> Runs:
    """The runs by arm and seed."""
    found: Runs = {}
    for run in runs:
        found.setdefault(run.arm, {})[run.seed] = run
    return found


def of_set(runs: Iterable[Run], scale: ExperimentScale, name: str) -> list[Run]:
    """Those of the runs that belong to a set of arms."""
    names = {arm.name for arm in SETS[scale.task.name][name]}
    return [run for run in runs if run.arm in names]


def planned(scale: ExperimentScale, name: str) -> set[tuple[str, int]]:
    """The arm and the seed of each run of a whole set; there may be runs of more seeds."""
    return {(arm.name, seed) for arm in SETS[scale.task.name][name] for seed in seeds_of(name)}


def lacking(runs: Iterable[Run], scale: ExperimentScale, name: str) -> int:
    """The number of planned runs of a set that are not among these."""
    return len(planned(scale, name) - {(run.arm, run.seed) for run in runs})


def _number(text: str) -> float:
    return float(text) if text else float("nan")


def write(path: pathlib.Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Writes a tab-separated table; a row may lack columns."""
    make_folder(path.parent)
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, file.getvalue())


def read(path: pathlib.Path) -> list[Row]:
    """The rows of a table, with all values as text."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))
