"""Survival, permutation tests and claims on cases with known answers."""

import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments.large_window_laziness import claims, figures, results, tables
from experiments.large_window_laziness import statistics as st
from experiments.large_window_laziness.arms import SCALES
from experiments.large_window_laziness.statistics import Time


def test_a_crossing_must_last_two_measurements():
    assert st.first_crossing([0, 10, 20, 30], [0, 0.6, 0.2, 0.7], 0.5) == Time(30, True)
    assert st.first_crossing([0, 10, 20, 30], [0, 0.6, 0.5, 0.7], 0.5) == Time(10, True)
    assert st.first_crossing([0, 10, 20], [0, 0.1, 0.2], 0.5) == Time(20, False)


def test_survival_is_the_kaplan_meier_estimate():
    """A censored run leaves the risk set and does not lower the curve."""
    times = [Time(3, True), Time(5, False), Time(7, True), Time(7, True), Time(9, False)]
    steps, share = st.survival(times)
    np.testing.assert_array_equal(steps, [0, 3, 7])
    np.testing.assert_allclose(share, [1, 4 / 5, 4 / 5 * 1 / 3])
    want = 3 * 1 + 4 * 4 / 5 + 3 * 4 / 15
    assert st.restricted_mean(times, 10) == pytest.approx(want)


def test_restricted_mean_without_early_censoring_is_the_mean():
    times = [Time(t, t < 50) for t in (10, 20, 50)]
    assert st.restricted_mean(times, 50) == pytest.approx(80 / 3)


def test_log_rank_equals_a_hand_calculation():
    """Two runs against two, uncensored: O - E = (1 - 1/2) + (1 - 1/3) = 7/6, V = 1/4 + 2/9."""
    a, b = [Time(1, True), Time(2, True)], [Time(3, True), Time(4, True)]
    assert st.log_rank(a, b) == pytest.approx((7 / 6) / np.sqrt(1 / 4 + 2 / 9))
    assert st.log_rank(b, a) == pytest.approx(-st.log_rank(a, b))


def test_permutation_of_three_against_three_is_exact():
    p = st.permutation([[[1, 2, 3], [7, 8, 9]]], lambda s: np.mean(s[1]) - np.mean(s[0]))
    assert p == pytest.approx(1 / 20)
    trend = st.permutation([[[1, 2], [3, 4], [5, 6]]], st.increasing, samples=2000)
    assert trend == pytest.approx(1 / 90, abs=0.01)
    assert st.increasing([[1], [1], [2]]) == 2.5


def curve(arm, seed, formed, local=1.30, steps=(0, 100, 200, 300, 400)):
    """A run whose accuracy at the largest distances rises from 0 to 0.9 at step `formed`."""
    steps = np.array(steps, float)
    values = {name: np.zeros(len(steps)) for name in tables.CURVE[2:]}
    values["step"] = steps
    values[tables.DISTANCES[-1]] = np.where(steps >= formed, 0.9, 0.0)
    values["local_nll"] = np.full(len(steps), local + 0.001 * seed)
    return tables.Curve(arm, seed, steps, values)


def runs(arm, formed, **options):
    return [curve(arm, seed, at, **options) for seed, at in enumerate(formed)]


NEVER = 9999


def outcome(curves, claim):
    (found,) = [v for v in claims.verdicts(curves) if v.claim == claim]
    return found.outcome


def test_claims_hold_on_data_that_supports_them():
    curves = runs("w4-rope", (100, 100, 200)) + runs("w16-rope", (200, 200, 300))
    curves += runs("w64-rope", (300, 300, 400)) + runs("w128-rope", (NEVER,) * 3)
    curves += runs("w4-nope", (100, 100, 100))
    curves += runs("w4-long-rope", (100, 100, 100)) + runs("w128-long-rope", (NEVER,) * 3)
    assert outcome(curves, "the larger the window, the later retrieval forms (rope)") == "holds"
    later = "window 128 forms retrieval later than window 4 (rope)"
    assert outcome(curves, later) == "holds"
    catches = "with enough training w128 catches up with w4 (rope)"
    assert outcome(curves, catches) == "does not hold"
    assert outcome(curves, "windows do not differ in short-range loss (rope)") == "holds"
    assert outcome(curves, "NoPE helps at window 4") == "undecided"


def test_claims_fail_on_data_that_contradicts_them():
    curves = runs("w4-rope", (400, 400, 400)) + runs("w16-rope", (300,) * 3)
    curves += runs("w64-rope", (200,) * 3) + runs("w128-rope", (100, 100, 100), local=1.5)
    curves += runs("w4-long-rope", (300,) * 3) + runs("w128-long-rope", (100,) * 3)
    assert outcome(curves, "the larger the window, the later retrieval forms (rope)") == (
        "does not hold"
    )
    assert outcome(curves, "windows do not differ in short-range loss (rope)") == "does not hold"
    catches = "with enough training w128 catches up with w4 (rope)"
    assert outcome(curves, catches) == "holds"


def test_arms_of_one_run_have_no_verdict():
    assert claims.verdicts(runs("w4-rope", (100,)) + runs("w128-rope", (100,))) == []


def test_tables_read_back_what_was_written(tmp_path):
    rows = [
        {"arm": "w4-rope", "seed": 1, "step": step, **{n: step / 10 for n in tables.CURVE[3:]}}
        for step in (0, 100)
    ]
    tables.write(tmp_path / "a" / "curves.tsv", tables.CURVE, rows)
    (read,) = tables.read_curves(tables.read(tmp_path / "a" / "curves.tsv"))
    assert (read.arm, read.seed) == ("w4-rope", 1)
    np.testing.assert_array_equal(read.values["mass"], [0, 10])


def test_figures_need_no_complete_set_of_arms():
    curves = runs("w4-rope", (100, 200)) + runs("w128-nope", (NEVER, 300))
    for make in figures.FIGURES.values():
        assert len(make(curves).axes) >= 2


@pytest.mark.parametrize("scale, least", [("main", 8), ("pilot", 20)])
def test_the_page_has_the_committed_claims(scale, least):
    curves = tables.read_curves(tables.read(claims.RESULTS / scale / "curves.tsv"))
    verdicts = [v._asdict() for v in claims.verdicts(curves, SCALES[scale])]
    assert tables.read(claims.RESULTS / scale / "claims.tsv") == verdicts
    page = results.README.read_text(encoding="utf-8")
    assert len(verdicts) >= least and results.filled(page, scale) == page
