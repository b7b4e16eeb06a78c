"""Budgets as numbers of layers, and as bytes of cache."""

import itertools

import numpy as np
import pytest

from hybridlm.distill.selection.budget import Budget
from hybridlm.errors import UserError


def test_a_number_of_layers_is_the_top_of_an_order():
    order = np.random.default_rng(0).permutation(9).tolist()
    for keep in range(10):
        assert Budget.of_layers(range(9), keep).cut(order) == set(order[:keep])


@pytest.mark.parametrize("seed", range(4))
def test_bytes_bound_the_sum_over_all_layers(seed):
    rng = np.random.default_rng(seed)
    depth, layers = 7, (0, 2, 3, 6)  # the other layers are equal in both models
    teacher, student = rng.integers(50, 100, depth), rng.integers(1, 50, depth)
    student[[1, 4, 5]] = teacher[[1, 4, 5]]
    limit = int(teacher.sum() + student.sum()) // 2
    budget = Budget.of_bytes(layers, limit, teacher.tolist(), student.tolist(), 128)
    for size in range(len(layers) + 1):
        for kept in itertools.combinations(layers, size):
            cost = sum(teacher[i] if i in kept else student[i] for i in range(depth))
            assert budget.cost(kept) == cost and budget.fits(kept) == (cost <= limit)


def test_a_layer_that_does_not_fit_is_passed_over():
    budget = Budget.of_bytes(range(3), 30, [20, 50, 5], [1, 1, 1], 64)
    assert budget.cut((0, 1, 2)) == {0, 2}


def test_the_share_is_that_of_the_costs_between_none_and_all():
    assert Budget.of_layers(range(8), 2).share == 0.25
    assert Budget.of_bytes(range(2), 60, [50, 50], [10, 10], 64).share == 0.5
    assert Budget.of_bytes(range(2), 10**6, [50, 50], [10, 10], 64).share == 1
    assert Budget.of_bytes(range(2), 20, [5, 5], [10, 10], 64).share == 1, "attention is cheaper"


def test_impossible_budgets_are_refused():
    with pytest.raises(UserError, match="from 0 to 4, the number of layers, not 5"):
        Budget.of_layers(range(4), 5)
    with pytest.raises(UserError, match="9 bytes of cache at 64 tokens, .* takes 10"):
        Budget.of_bytes(range(2), 9, [20, 20], [5, 5], 64)
