"""The tables of the runs on real text: a row per measurement, and a row per run."""

import pathlib
from typing import Any

from experiments.large_window_laziness.paired import first_lasting
from experiments.large_window_laziness.runs import FORMED
from experiments.large_window_laziness.tables import Row, write
from experiments.large_window_laziness.text.arms import TextScale, arms
from hybridlm.settings import json_text

KINDS = ("spliced", "natural")


def distances(scale: TextScale) -> list[str]:
    """Names of the ranges of distances."""
    return [f"{first}-{last}" for first, last in scale.bins]


def curve_columns(scale: TextScale) -> list[str]:
    """Columns of text_curves.tsv; mass, copy and entropy are those of the run's best head."""
    by_distance = [
        f"{kind}_{what}_{d}"
        for kind in KINDS
        for what in ("gain", "accuracy")
        for d in distances(scale)
    ]
    return ["arm", "seed", "step", "plain_nll", *by_distance, "mass", "copy", "entropy"]


def run_columns(scale: TextScale) -> list[str]:
    """Columns of text_runs.tsv.

    `full_sees_*`, `local_sees_*` and `masked_*` are accuracies on spliced copies from the furthest
    distances; `needle_*` are accuracies of needles; `longer_*` are at twice the training length.
    """
    sees = [*map(str, scale.windows), str(scale.length)]
    return [
        *("arm", "seed", "steps", "formed", "formed_step", "plain_nll"),
        *(f"full_sees_{w}" for w in sees),
        *(f"local_sees_{w}" for w in sees),
        *("masked_none", "masked_retrieval", "masked_random"),
        *(f"needle_{d}" for d in distances(scale)[1:]),
        *("longer_plain_within", "longer_plain_beyond", "longer_gain", "longer_accuracy"),
        "wall_seconds",
    ]


def collect(workdir: pathlib.Path, scale: TextScale) -> tuple[list[Row], list[Row]]:
    """(rows of text_curves.tsv, of text_runs.tsv) of all complete runs."""
    order = {arm.name: i for i, arm in enumerate(arms(scale))}
    done = [(p.parent, json_text.loads(p.read_text())) for p in workdir.glob("*/*/done.json")]
    curves, runs = [], []
    for folder, facts in sorted(done, key=lambda d: (order[d[1]["arm"]], d[1]["seed"])):
        records = [json_text.loads(line) for line in (folder / "curve.jsonl").open()]
        key = {"arm": facts["arm"], "seed": facts["seed"]}
        best = max(records[-1]["heads"], key=lambda head: head[2])[:2]
        curves += [{**key, **_curve_row(record, scale, best)} for record in records]
        runs.append({**key, **_run_row(facts, records, scale)})
    return curves, runs


def _curve_row(record: dict[str, Any], scale: TextScale, best: list[int]) -> Row:
    (head,) = [head for head in record["heads"] if head[:2] == best]
    row = {"step": record["step"], "plain_nll": record["plain_nll"]}
    for kind in KINDS:
        for what in ("gain", "accuracy"):
            for d, value in zip(distances(scale), record[kind][what], strict=True):
                row[f"{kind}_{what}_{d}"] = value
    return row | dict(zip(("mass", "copy", "entropy"), head[2:]))


def _run_row(facts: dict[str, Any], records: list[dict[str, Any]], scale: TextScale) -> Row:
    far = [record["spliced"]["accuracy"][-1] for record in records]
    formed = first_lasting([record["step"] for record in records], far, FORMED)
    end = facts["end"]
    row = {name: facts[name] for name in ("steps", "wall_seconds")}
    row |= {"formed": int(formed.seen), "formed_step": int(formed.step)}
    row["plain_nll"] = records[-1]["plain_nll"]
    for group, found in end["restricted"].items():
        row |= {f"{group}_sees_{window}": accuracy for window, accuracy in found.items()}
    row |= {f"masked_{which}": accuracy for which, accuracy in end["masked"].items()}
    for d, accuracy in zip(distances(scale)[1:], end["needles"]["accuracy"], strict=True):
        row[f"needle_{d}"] = accuracy
    longer = end["longer"]
    return row | {
        "longer_plain_within": longer["plain_nll_within"],
        "longer_plain_beyond": longer["plain_nll_beyond"],
        "longer_gain": longer["spliced"]["gain"][0],
        "longer_accuracy": longer["spliced"]["accuracy"][0],
    }


def write_tables(workdir: pathlib.Path, scale: TextScale) -> int:
    """Writes both tables into the folder of all runs; returns the number of runs."""
    curves, runs = collect(workdir, scale)
    write(workdir / "text_curves.tsv", curve_columns(scale), curves)
    write(workdir / "text_runs.tsv", run_columns(scale), runs)
    return len(runs)
