"""The sentences about controls, recurrences, NHA and cures, on synthetic runs with planted times."""

import pathlib
import re
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments.large_window_laziness import answers, comparisons, page, tables
from experiments.large_window_laziness.arms import MAIN
from tests.experiments.planted_runs import NEVER, ORDER, Planted, made

SAME = Planted(times=dict.fromkeys(ORDER, 1000.0), noise=0.02)


def said(name, slower, seeds=range(10)):
    """The answer of a table whose runs form at step 1,000, but for the arms in `slower`."""
    sets = ("core", "alone", "far", "conv", "recurrent", "cures")
    found = []
    for run in made(SAME, 3, seeds=seeds, sets=sets):
        factor = slower.get(run.arm.rpartition("-")[0], 1.0)
        if factor == NEVER:
            zeros = {tables.distances(MAIN)[-1]: np.zeros(len(run.steps))}
            found.append(run._replace(curve=run.curve | zeros))
        else:
            found.append(run._replace(curve=run.curve | {"step": run.steps * factor}))
    return answers.answer(name, found, comparisons.compared(found), MAIN)


def test_nothing_is_said_without_runs():
    core = made(SAME, 3, sets=("core",))
    for name in comparisons.pairs():
        if name != "positions":
            assert answers.answer(name, core, comparisons.compared(core), MAIN) == page.NOT_RUN


def test_ten_seeds_are_decided_by_the_test():
    text = said("recurrent", {"gdn": 0.5, "lightning": 2.0})
    first = text.split("of full attention: ")[1].split(". ")[0]
    one, two, three = first.split("; ")
    assert re.fullmatch(
        r"Gated DeltaNet \(0\.[45]\d*, 0\.[45]\d*\) is earlier \(shown\) with both", one
    )
    assert re.fullmatch(r"Lightning \([\d.]+, [\d.]+\) is later \(shown\) with both", two)
    assert re.fullmatch(r"Mamba-2 \([\d.]+, [\d.]+\) is not shown to differ with both", three)
    assert "NHA" not in text and "not decided" not in text
    assert text.startswith("Median steps with RoPE and NoPE: Gated DeltaNet 5")


def test_five_seeds_say_what_all_of_them_have_in_common():
    text = said("cures", {"curriculum": 0.5, "dropout": 2.0}, range(5))
    assert "the doubling window (0.5" in text and ") is earlier in all 5 seeds with both" in text
    assert "is later in all 5 seeds with both" in text and "(shown)" not in text
    assert "the stochastic window (" in text and "neither earlier nor later in all 5 seeds" in text
    assert text.endswith("5 seeds: not decided by test (the least p is 0.0625).")


def test_positions_that_differ_are_named():
    """Only with NoPE is the doubling window earlier; dropout has no run with NoPE."""
    found = []
    for run in made(SAME, 3, sets=("core", "cures")):
        factor = 0.5 if run.arm == "curriculum-nope" else 1.0
        if run.arm != "dropout-nope":
            found.append(run._replace(curve=run.curve | {"step": run.steps * factor}))
    text = answers.answer("cures", found, comparisons.compared(found), MAIN)
    assert ") is not shown to differ with RoPE and earlier (shown) with NoPE" in text
    assert re.search(r"dropout \([\d.]+, –\) is not shown to differ with RoPE\.", text)


def test_times_that_are_not_seen_are_bounds():
    text = said("cures", {"dropout": NEVER, "w4": NEVER}, range(5))
    assert re.search(r"dropout > \d+ \(0 of 5 formed\), > \d+ \(0 of 5 formed\)", text)
    bound = r"(4\.9\d*|5[.\d]*)"
    assert re.search(rf"dropout \(> {bound}, > {bound}\) is later in all 5", text)  # over window 32
    assert "dropout (no bound, no bound) is not compared, as no time is known" in text
    assert re.search(r"the stochastic window \(< 0\.(19\d*|20\d*|2), <", text)


def test_windows_and_slots_of_nha_are_told_apart():
    text = said("nha", {"nha16x4": 2.0, "nha16x16": 2.0})
    more, larger = text.split("with fewer slots: ")[1].split("with a smaller window: ")
    assert re.match(r"NHA 4x16 \(.*\) and NHA 16x16 \(.*\) are not shown to differ with both", more)
    assert re.match(r"NHA 16x4 \(.*\) and NHA 16x16 \(.*\) are later \(shown\) with both", larger)


@pytest.mark.parametrize(
    ("slower", "seeds", "words"),
    [
        ({"w32": 2.0}, 10, "(smaller (shown))"),
        ({"w32-far": 2.0}, 10, "(larger (shown))"),
        ({"w32": 2.0, "w32-far": 2.0}, 10, "(not shown to differ)"),
        ({"w32": 2.0}, 5, "(smaller in all 5 seeds)"),
    ],
)
def test_the_delay_under_a_control_is_compared_with_that_of_the_main_table(slower, seeds, words):
    text = said("far", slower, range(seeds))
    assert text.count(words) == 2  # RoPE and NoPE
    assert "Window 32's delay, its steps over those of window 4, is" in text
    assert "Steps over those of window 4: full attention (" in text


def test_recurrences_with_the_convolution_are_compared_with_those_without():
    text = said("conv", {"gdn-conv": 0.5})
    alone = text.split("without the control: ")[1]
    assert "Gated DeltaNet (0.5" in alone and "is earlier (shown) with both" in alone
    assert "of full attention: Gated DeltaNet (0.5" in text
