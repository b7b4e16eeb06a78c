"""Intervals over evaluation sets."""

import math

import numpy as np
import pytest

from hybridlm.distill.selection.noise import difference, interval


@pytest.mark.parametrize("sets", (2, 5, 40))
def test_intervals_cover_the_mean_in_95_of_100_experiments(sets):
    rng = np.random.default_rng(sets)
    experiments = rng.normal(3, 2, (2000, sets))
    found = [interval(values.tolist()) for values in experiments]
    covered = np.mean([abs(x.mean - 3) <= x.half for x in found])
    assert abs(covered - 0.95) < 0.02


def test_a_difference_is_paired():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 100, 6)  # how hard each set is
    a, b = hard + 1 + rng.normal(0, 0.1, 6), hard + rng.normal(0, 0.1, 6)
    found = difference(a, b)
    assert not found.holds_zero and abs(found.mean - 1) < found.half < 1


def test_a_single_set_and_a_diverged_one_give_no_interval():
    assert interval([2.0]).half is None and interval([2.0]).holds_zero is None
    assert math.isnan(interval([2.0, math.nan]).mean) and interval([2.0, math.nan]).half is None
