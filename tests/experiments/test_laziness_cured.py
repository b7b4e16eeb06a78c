"""Why a stochastic window cures: the counts on planted tables, and a trace that trains as a run does."""

import dataclasses
import json
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments.large_window_laziness import cured, runs, tables
from experiments.large_window_laziness.arms import ARMS, MAIN
from experiments.large_window_laziness.tables import Run

ARM = ARMS["main"]["stochastic-rope"]


def formed_at(arm, seed, step):
    steps = np.arange(0, 101) * 50
    curve = {"step": steps, tables.distances(MAIN)[-1]: np.where(steps >= step, 0.9, 0.1)}
    return Run(arm, seed, curve, {"budget": 5000})


@pytest.mark.parametrize(
    "foreseen", ["narrow steps teach", "any step teaches", "wide steps unlearn"]
)
def test_each_explanation_has_its_ratios(foreseen):
    """A run forms where its taught steps reach those of the small window's run, to 50 steps."""
    found = []
    for seed in range(10):
        needed = 600 + 50 * seed
        narrow = np.cumsum([ARM.window(step, ARM.steps, seed) < ARM.final for step in range(5000)])
        wide = np.arange(1, 5001) - narrow
        taught = {
            "narrow steps teach": narrow,
            "any step teaches": narrow + wide,
            "wide steps unlearn": narrow - wide / 3,
        }[foreseen]
        found += [formed_at(ARM.name, seed, 50 * (np.argmax(taught >= needed) // 50 + 1))]
        found += [formed_at("w4-rope", seed, needed)]
    (whole, seeds), (narrow, _) = cured.counted(found).values()
    assert seeds == 10
    expected = {
        "narrow steps teach": (2, 1),
        "any step teaches": (1, 0.5),
        "wide steps unlearn": (3, 1.5),
    }[foreseen]
    for ratio, value in zip((whole, narrow), expected):
        assert ratio.low <= ratio.value <= ratio.high
        assert ratio.value == pytest.approx(value, rel=0.1)


def test_a_seed_without_retrieval_is_left_out():
    found = [formed_at("w4-rope", 0, 600), formed_at(ARM.name, 0, 9999)]
    assert cured.counted(found) == {}


@pytest.mark.slow
def test_a_trace_trains_as_the_run_does(tmp_path):
    """Its accuracy under the arm's last window is the run's; gradients under both windows differ."""
    arm = dataclasses.replace(ARM, scale=ARM.scale._replace(batch=2, every=2), steps=4)
    runs.run(arm, 0, tmp_path, log=lambda line: None, ends=False)
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").open()]
    rows = list(cured.trace(arm, 0))
    own = [row for row in rows if row["window"] == arm.final]
    assert [(r["step"], r["far"], r["near"]) for r in own] == [
        (r["step"], r["accuracy"][-1], r["accuracy"][0]) for r in curve
    ]
    by_step = {}
    for row in rows:
        by_step.setdefault(row["step"], []).append(row)
    assert all(a["norm"] != b["norm"] for a, b in by_step.values())
    assert all(abs(row["pull"]) <= row["norm"] for row in rows if row["step"] < 4)
    written = [{n: str(x) for n, x in cured._short(row).items()} for row in rows]
    assert len(cured.figure_of([{"pull": "", **row} for row in written]).axes) == 2
