"""The tables of the runs on real text: a row per measurement, and a row per run."""

import pathlib
from collections.abc import Sequence
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
    """Columns of text_curves.tsv; mass, copy and entropy are the best head's.

    It is the head of `TextArm.searched` with the largest mass at the end.
    """
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
    done = []
    for path in workdir.glob("*/*/done.json"):
        lines = (path.parent / "curve.jsonl").read_text().splitlines()
        done.append((json_text.loads(path.read_text()), [json_text.loads(x) for x in lines]))
    return _rows(done, scale)


def collect_visit(results: pathlib.Path, scale: TextScale) -> tuple[list[Row], list[Row]]:
    """The same from the records of a GPU visit: the runs whose end it has."""
    found = [json_text.loads(line) for line in results.read_text().splitlines()]
    measured: dict[tuple[str, int], dict[int, Any]] = {}
    ends = {}
    for record in found:
        if record["kind"] == "text":  # a resumed run repeats a measurement
            measured.setdefault((record["arm"], record["seed"]), {})[record["step"]] = record
        elif record["kind"] == "text end":
            ends[record["arm"], record["seed"]] = record
    done = []
    for key, end in ends.items():
        records = [measured[key][step] for step in sorted(measured[key])]
        seconds = records[-1]["wall_seconds"]
        facts = {name: end[name] for name in ("arm", "seed", "steps")}
        done.append((facts | {"wall_seconds": seconds, "end": end}, records))
    return _rows(done, scale)


def _rows(
    done: Sequence[tuple[dict[str, Any], list[dict[str, Any]]]], scale: TextScale
) -> tuple[list[Row], list[Row]]:
    """From (the facts of done.json, the lines of curve.jsonl) of each run."""
    by_name = {arm.name: arm for arm in arms(scale)}
    order, curves, runs = list(by_name), [], []
    for facts, records in sorted(done, key=lambda d: (order.index(d[0]["arm"]), d[0]["seed"])):
        key, searched = {n: facts[n] for n in ("arm", "seed")}, by_name[facts["arm"]].searched
        heads = [head for head in records[-1]["heads"] if head[0] in searched]
        best = max(heads, key=lambda head: head[2])[:2]
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
    far = [record["spliced"]["accuracy"][-1] or 0.0 for record in records]  # None: no tokens
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


def write_tables(folder: pathlib.Path, scale: TextScale, found: tuple[list[Row], list[Row]]) -> int:
    """Writes both tables of `collect` into a folder; returns the number of runs."""
    curves, runs = found
    write(folder / "text_curves.tsv", curve_columns(scale), curves)
    write(folder / "text_runs.tsv", run_columns(scale), runs)
    return len(runs)
