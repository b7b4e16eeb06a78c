"""The Hopper kernels of the delta rule, interpreted."""

import pytest
from kernel_laws import LAWS
from subjects.delta_rule import delta_subject
from walks import (
    check_coverage,
    check_planted_fault,
    check_rounding_and_races,
    check_vmap,
    each_law,
    hold,
    widened,
)

from kernels_pallas import delta_rule as op
from kernels_pallas.delta_rule import hopper

#: One case by default, all with the slow tests.
ONE = ("head", pytest.param("channel", marks=pytest.mark.slow))


def subject(gate="head", kv_heads=1, repeats=1, key_size=64, value_size=64, **options):
    return delta_subject(gate, kv_heads, repeats, key_size, value_size, **options)


@pytest.fixture
def float32_too(monkeypatch):
    monkeypatch.setattr(op, "SUPPORT", widened(op.SUPPORT))


@pytest.fixture(scope="module", params=[*ONE, pytest.param("erase", marks=pytest.mark.slow)])
def held(request):
    # Several chunks, the last not full; value heads that share a key head.
    subjects = dict(
        head=subject("head", repeats=2),
        channel=subject("channel"),
        erase=subject("channel", repeats=2, erase=True),
    )
    yield hold(subjects[request.param], 0, 70)


@each_law
def test_law(held, law, float32_too):
    LAWS[law](held)


@pytest.mark.slow
def test_without_a_gradient(held, float32_too):
    held.check_no_gradient()


@pytest.mark.parametrize("gate", ONE)
def test_bfloat16_is_as_exact_as_in_the_chunked_form_and_free_of_races(gate):
    check_rounding_and_races(subject(gate))


@pytest.mark.slow
def test_bfloat16_with_an_erase_key_is_as_exact_and_free_of_races():
    check_rounding_and_races(subject("channel", erase=True))


SIZES = (
    ("none", dict(kv_heads=2, repeats=1, key_size=64, value_size=128), 130),
    ("head", dict(kv_heads=2, repeats=2, key_size=128, value_size=128), 63),
    ("head", dict(kv_heads=1, repeats=3, key_size=128, value_size=64), 200),
    ("channel", dict(kv_heads=1, repeats=2, key_size=128, value_size=128), 1),
    ("channel", dict(kv_heads=2, repeats=1, key_size=64, value_size=64), 300),
    ("head", dict(kv_heads=1, repeats=2, key_size=64, value_size=64, erase=True), 130),
    ("channel", dict(kv_heads=2, repeats=1, key_size=64, value_size=128, erase=True), 127),
)


@pytest.mark.slow
@pytest.mark.parametrize("gate, sizes, time", SIZES)
def test_sizes(gate, sizes, time, float32_too):
    held = hold(subject(gate, **sizes), time, time)
    held.check_values()
    held.check_no_gradient()


@pytest.mark.slow
@pytest.mark.parametrize("longest_key, decay", ((0.3, 10.0), (3.0, 0.01)))
@pytest.mark.parametrize("gate", ("head", "channel"))
def test_strengths(gate, longest_key, decay, float32_too):
    strong = subject(gate, longest_key=longest_key, decay=decay)
    held = hold(strong, 3, 130)
    held.check_values()
    held.check_finite()


@pytest.mark.slow
def test_vmap(float32_too):
    check_vmap(subject("head"))


def test_only_a_call_by_name_takes_the_kernel_and_only_where_it_is_covered():
    check_coverage(subject, "delta_rule_forward", dict(key_size=192), dict(value_size=32))


@pytest.mark.slow
@pytest.mark.parametrize("options", [dict(), dict(gate="channel", erase=True)])
def test_a_planted_fault_is_caught(options, float32_too, monkeypatch):
    check_planted_fault(subject(**options), monkeypatch)


def erases_at_the_written_key(precision, scale, inputs, resets_BT, original=hopper._prepare):
    q, k, *others, _ = inputs
    return original(precision, scale, (q, k, *others, k), resets_BT)


@pytest.mark.slow
def test_an_erase_key_that_is_not_read_is_caught(float32_too, monkeypatch):
    monkeypatch.setattr(hopper, "_prepare", erases_at_the_written_key)
    with pytest.raises(AssertionError, match="off by"):
        LAWS["split"](hold(subject("channel", erase=True), 6, 70))
