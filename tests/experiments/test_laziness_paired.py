"""Paired tests and intervals: exactness, censoring and Holm's correction."""

import itertools
import math
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments.large_window_laziness import paired
from experiments.large_window_laziness.paired import Bounds, Time

DRAWS = 1000


def test_an_event_must_last_two_measurements():
    assert paired.first_lasting([0, 10, 20, 30], [0, 0.6, 0.2, 0.7], 0.5) == Time(30, False)
    assert paired.first_lasting([0, 10, 20, 30], [0, 0.6, 0.5, 0.2], 0.5) == Time(10, True)
    assert paired.first_lasting([0, 10, 20], [0, 0.1, 0.2], 0.5) == Time(20, False)


def test_the_sign_flip_test_equals_an_enumeration():
    d = np.random.default_rng(5).normal(0.4, 1, 7)
    means = [np.mean(d * s) for s in itertools.product((1, -1), repeat=7)]
    assert paired.sign_flip(d) == np.mean(np.array(means) >= d.mean() - 1e-12)
    assert paired.sign_flip([1.0] * 10) == 2**-10
    assert paired.sign_flip([0.0] * 10) == 1


def test_the_sign_flip_test_has_its_level():
    """Of 1,000 samples without a difference, about 5% have p <= 0.05."""
    rng = np.random.default_rng(1)
    p = np.array([paired.sign_flip(rng.standard_t(3, 10)) for _ in range(DRAWS)])
    assert 0.03 < np.mean(p <= 0.05) < 0.07


def test_a_censored_time_works_against_the_conclusion():
    seen, beyond = Time(500, True), Time(1000, False)
    d = paired.log_ratio([beyond, seen, beyond], [seen, beyond, beyond], 1000)
    np.testing.assert_allclose(d.nearest, [math.log(2), -math.log(2), 0])
    np.testing.assert_allclose(d.high, [math.inf, -math.log(2), math.inf])
    np.testing.assert_allclose(d.low, [math.log(2), -math.inf, -math.inf])
    late = paired.log_ratio([beyond] * 10, [seen] * 10, 1000)
    assert paired.above(late, 0.1) == (2**-10, 1.0)
    neither = paired.log_ratio([beyond] * 10, [beyond] * 10, 1000)
    assert paired.above(neither, 0.1) == (1.0, 1.0)
    reversed_ = paired.log_ratio([seen] * 10, [beyond] * 10, 1000)
    assert paired.above(reversed_, 0.1) == (1.0, 2**-10)


def test_one_unknown_pair_weakens_a_refutation():
    """Nine ratios of 1, and one pair of which the late run is not seen."""
    rng = np.random.default_rng(2)
    early = [Time(step, True) for step in rng.uniform(400, 600, 10)]
    late = [Time(t.step * (1 + 0.02 * e), True) for t, e in zip(early, rng.normal(size=10))]
    refuted = paired.above(paired.log_ratio(late, early, 1000), math.log(1.1))[1]
    late[0] = Time(1000, False)
    weaker = paired.above(paired.log_ratio(late, early, 1000), math.log(1.1))[1]
    assert refuted == 2**-10 < weaker


def test_one_early_time_not_seen_weakens_a_delay():
    """Nine pairs of 1650 and 1000 steps, and one of 4000 and none by 5000."""
    late, early = [Time(1650, True)] * 9, [Time(1000, True)] * 9
    d = paired.log_ratio([*late, Time(4000, True)], [*early, Time(5000, False)], 5000)
    # All sign patterns that turn the unknown pair exceed the mean, and that of no turn equals it.
    assert (
        paired.above(d, math.log(1.1))[0] == 513 / 1024 and paired.above(d, math.log(1.1))[1] > 0.9
    )
    found = paired.bounded_interval(d)
    assert found.low == -math.inf and found.high == pytest.approx(math.log(1.65))
    known = paired.log_ratio(late, early, 5000)
    assert paired.bounded_interval(known) == paired.interval(known.nearest)


def test_an_interval_is_infinite_where_times_are_not_seen():
    seen, beyond = [Time(500, True)] * 10, [Time(1000, False)] * 10
    later = paired.bounded_interval(paired.log_ratio(beyond, seen, 1000))
    assert later.low == pytest.approx(math.log(2)) and later.high == math.inf
    nothing = paired.bounded_interval(paired.log_ratio(beyond, beyond, 1000))
    assert str(nothing) == "not known" and math.isnan(nothing.low)


def test_differences_of_times_have_the_bounds_of_both():
    """A time that is not seen is known to lie beyond the last step of its own run."""
    a = Bounds.log_times([Time(800, True), Time(1200, False), Time(800, True), Time(500, False)])
    b = Bounds.log_times([Time(400, True), Time(600, True), Time(1600, False), Time(900, False)])
    d = a.less(b)
    np.testing.assert_allclose(d.low, [math.log(2), math.log(2), -math.inf, -math.inf])
    np.testing.assert_allclose(d.high, [math.log(2), math.inf, -math.log(2), math.inf])
    np.testing.assert_allclose(d.nearest, [math.log(2), math.log(2), -math.log(2), 0])
    both = d.less(d)
    np.testing.assert_allclose(both.low, [0, -math.inf, -math.inf, -math.inf])
    np.testing.assert_allclose(both.high, [0, math.inf, math.inf, math.inf])


def test_each_pair_has_its_own_budget():
    """A time beyond its pair's budget is not seen, so that both runs had the same chance."""
    late, early = [Time(900, True), Time(500, False)], [Time(450, True), Time(600, True)]
    d = paired.log_ratio(late, early, [1000, 500])
    np.testing.assert_allclose(d.low, [math.log(2), -math.inf])
    np.testing.assert_allclose(d.high, [math.log(2), math.inf])


def test_a_claim_of_no_difference_needs_small_differences():
    rng = np.random.default_rng(3)
    small = Bounds.known(rng.normal(0, 0.01, 10))
    assert paired.within(small, 0.05)[0] == 2**-10 and paired.within(small, 0.05)[1] == 1
    large = Bounds.known(rng.normal(0.2, 0.01, 10))
    assert paired.within(large, 0.05)[0] == 1 and paired.within(large, 0.05)[1] == 2**-9
    wide = Bounds.known(rng.normal(0, 0.5, 10))
    assert min(paired.within(wide, 0.05)) > 0.05


def test_holm_equals_a_hand_calculation():
    assert paired.holm([0.03, 0.01, 0.04, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert paired.holm([0.5, 0.6]) == [1.0, 1.0]


def test_an_interval_holds_what_the_test_does_not_reject():
    d = np.random.default_rng(4).normal(0.3, 1, 10)
    found = paired.interval(d)
    for centre in np.linspace(-2, 2, 81):
        p = min(paired.sign_flip(d - centre), paired.sign_flip(centre - d))
        if abs(centre - found.low) > 1e-3 and abs(centre - found.high) > 1e-3:
            assert (p > 0.025) == (found.low < centre < found.high), centre
    assert paired.interval(d[:5]).high == math.inf
