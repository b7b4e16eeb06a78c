"""Mixtures: exact shares at any index, without state."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.data.mixture import integer_weights, select, source_seed, spread_order

weights = st.lists(st.integers(1, 30), min_size=1, max_size=5)


@pytest.mark.parametrize(
    "given_weights, expected",
    [
        ([0.7, 0.3], (7, 3)),
        ([1, 1], (1, 1)),
        ([0.1, 0.2, 0.25], (2, 4, 5)),
        ([5.0], (1,)),
        ([1e-6, 1.0], (1, 10**6)),
        ([2, 0.5], (4, 1)),
    ],
)
def test_weights_are_read_as_decimals(given_weights, expected):
    assert integer_weights(given_weights) == expected


@settings(max_examples=60, deadline=None)
@given(weights=weights, start=st.integers(0, 2**50))
def test_a_cycle_has_exact_shares(weights, start):
    total = sum(weights)
    start -= start % total
    chosen = [select(start + i, weights) for i in range(total)]
    for source, weight in enumerate(weights):
        mine = [k for s, k in chosen if s == source]
        first = start // total * weight
        assert mine == list(range(first, first + weight)), "elements are skipped or repeated"


@settings(max_examples=60, deadline=None)
@given(weights=weights, count=st.integers(1, 300))
def test_any_prefix_is_close_to_the_shares(weights, count):
    taken = [0] * len(weights)
    for index in range(count):
        source, before = select(index, weights)
        assert before == taken[source]
        taken[source] += 1
    for got, weight in zip(taken, weights):
        assert abs(got - Fraction(count * weight, sum(weights))) < len(weights)


def test_grains_mix_is_not_exact():
    """The reason for `select`; remove it once Grain's mix is exact."""
    import grain

    parents = [grain.MapDataset.range(10**6).map(lambda _, i=i: i) for i in range(2)]
    mixed = grain.MapDataset.mix(parents, weights=[0.7, 0.3])
    counts = sum(mixed[i] == 1 for i in range(10_000))
    ours = sum(select(i, (7, 3))[0] == 1 for i in range(10_000))
    assert ours == 3000
    assert counts != 3000


def test_source_seeds_differ_by_run_and_name():
    seeds = {source_seed(s, n) for s in range(30) for n in ("a", "b", "0", "1/a")}
    assert len(seeds) == 120
    assert all(0 <= s < 2**32 for s in seeds)
    ordered = sorted(seeds)
    assert min(b - a for a, b in zip(ordered, ordered[1:])) > 100, "Grain adds the epoch to a seed"


@given(count=st.integers(0, 300))
def test_spread_order_is_a_permutation(count):
    assert sorted(spread_order(count)) == list(range(count))


@given(count=st.integers(1, 300), data=st.data())
def test_prefixes_of_the_spread_order_are_even(count, data):
    order = list(spread_order(count))
    some = sorted(order[: data.draw(st.integers(1, count))])
    gaps = [b - a for a, b in zip([-1, *some], [*some, count])]
    power = 1 << (max(1, count - 1)).bit_length()
    assert max(gaps) <= 4 * power / len(some), (gaps, len(some))
