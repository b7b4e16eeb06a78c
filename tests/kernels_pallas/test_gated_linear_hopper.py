"""The Hopper kernel of gated linear attention, interpreted."""

import jax.numpy as jnp
import pytest
from kernel_laws import LAWS
from subjects.gated_linear import gated_subject
from walks import (
    check_coverage,
    check_planted_fault,
    check_rounding_and_races,
    check_vmap,
    each_law,
    hold,
    widened,
)

from kernels_pallas import gated_linear as op

#: One case by default, all with the slow tests.
ONE = ("token", pytest.param("channel", marks=pytest.mark.slow))


def subject(decay="token", groups=1, ratio=1, key_size=64, value_size=64, **options):
    return gated_subject(groups, ratio, key_size, value_size, decay, scale=0.25, **options)


@pytest.fixture
def float32_too(monkeypatch):
    monkeypatch.setattr(op, "SUPPORT", widened(op.SUPPORT))


@pytest.fixture(scope="module", params=ONE)
def held(request):
    # Several chunks, the last not full; value heads that share a key head; padded sizes.
    ratio = dict(token=2, channel=1)[request.param]
    yield hold(subject(request.param, ratio=ratio, key_size=48, value_size=40), 0, 70)


@each_law
def test_law(held, law, float32_too):
    LAWS[law](held)


@pytest.mark.slow
def test_without_a_gradient(held, float32_too):
    held.check_no_gradient()


@pytest.mark.parametrize("decay", (*ONE, pytest.param("head", marks=pytest.mark.slow)))
def test_bfloat16_is_as_exact_as_in_the_chunked_form_and_free_of_races(decay):
    # A gradient of one or two numbers has too few errors to average.
    check_rounding_and_races(subject(decay, ratio=8 if decay == "head" else 1, strength=0.01))


def test_values_of_float32_beside_keys_of_bfloat16_are_rounded_once():
    """As Mamba-2 and Mamba-3 call it; outputs and gradients of values are float32."""
    check_rounding_and_races(subject("token", ratio=2, strength=0.01, value_dtype=jnp.float32))


SIZES = (
    ("head", dict(groups=2, ratio=1, key_size=64, value_size=128), 130),
    ("token", dict(groups=1, ratio=4, key_size=128, value_size=64), 63),
    ("token", dict(groups=2, ratio=2, key_size=16, value_size=80), 200),
    ("token", dict(groups=1, ratio=1, key_size=256, value_size=192), 130),
    ("channel", dict(groups=1, ratio=2, key_size=128, value_size=128), 1),
    ("channel", dict(groups=2, ratio=1, key_size=100, value_size=64), 300),
)


@pytest.mark.slow
@pytest.mark.parametrize("decay, sizes, time", SIZES)
def test_sizes(decay, sizes, time, float32_too):
    held = hold(subject(decay, **sizes), time, time)
    held.check_values()
    held.check_no_gradient()


@pytest.mark.slow
@pytest.mark.parametrize("strength", (1e-3, 10.0))
@pytest.mark.parametrize("decay", ("token", "channel"))
def test_strengths(decay, strength, float32_too):
    strong = subject(decay, strength=strength)
    held = hold(strong, 3, 130)
    held.check_values()
    held.check_finite()


@pytest.mark.slow
def test_vmap(float32_too):
    check_vmap(subject("token"))


def test_only_a_call_by_name_takes_the_kernel_and_only_where_it_is_covered():
    check_coverage(subject, "gated_linear_forward", dict(key_size=257))


@pytest.mark.slow
def test_a_planted_fault_is_caught(float32_too, monkeypatch):
    check_planted_fault(subject("token"), monkeypatch)
