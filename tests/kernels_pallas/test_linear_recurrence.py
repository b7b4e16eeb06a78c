"""The linear recurrence against the laws, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_subjects import a_boundary, recurrence_subject

from kernels_pallas import testing
from kernels_pallas.linear_recurrence import RecurrenceState, linear_recurrence

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=5, deadline=None)
@given(seed=seeds, time=st.integers(1, 300), channels=st.integers(1, 9))
def test_chunked_is_reference(seed, time, channels):
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        ids = testing.draw_segment_ids(rng, 2, time)
        testing.check_forms(recurrence_subject(channels), rng, 2, time, segment_ids=ids)


def test_float32():
    rng = np.random.default_rng(1)
    testing.check_forms(recurrence_subject(), rng, 2, 257, jnp.float32, 1e-5)


def test_packed_is_separate(x64):
    rng = np.random.default_rng(2)
    cut = int(rng.integers(2, 40))
    testing.check_packed(recurrence_subject(), rng, [1, cut, 30, 1, 1], gaps=[0, 3, 0, 0, 5])


def test_split_is_whole(x64):
    rng = np.random.default_rng(3)
    ids = testing.draw_segment_ids(rng, 3, 60)
    cuts = sorted({a_boundary(ids), *(int(c) for c in rng.integers(1, 60, size=2))})
    testing.check_split(recurrence_subject(), rng, 3, 60, cuts, segment_ids=ids)
    testing.check_split(recurrence_subject(), rng, 3, 9, range(1, 9), segment_ids=ids[:, :9])


def test_causal_and_padding_inert():
    rng = np.random.default_rng(4)
    ids = testing.draw_segment_ids(rng, 2, 90)
    testing.check_causal(recurrence_subject(), rng, 2, 90, int(rng.integers(1, 90)), ids)


@pytest.mark.parametrize("time", [1, 63, 127, 1000])
def test_finite(time):
    rng = np.random.default_rng(5)
    ids = testing.draw_segment_ids(rng, 2, time)
    testing.check_finite(recurrence_subject(), rng, 2, time, segment_ids=ids)


def test_gates_0_and_1_are_exact():
    """Gate 0 copies the input, gate 1 sums integers without rounding."""
    b = jnp.asarray(np.random.default_rng(6).integers(-8, 9, (2, 500, 3)), jnp.float32)
    np.testing.assert_array_equal(linear_recurrence(jnp.zeros_like(b), b), b)
    np.testing.assert_array_equal(linear_recurrence(jnp.ones_like(b), b), jnp.cumsum(b, 1))


def test_deterministic_and_vmap(x64):
    rng = np.random.default_rng(7)
    testing.check_deterministic(recurrence_subject(), rng, 2, 150)
    testing.check_vmap(recurrence_subject(), rng, 3, 1, 40)


def test_bfloat16_gates_run_in_float32():
    a, b = jnp.full((1, 9, 2), 0.5, jnp.bfloat16), jnp.ones((1, 9, 2), jnp.bfloat16)
    h, state = linear_recurrence(a, b, return_state=True)
    assert h.dtype == state.h_BD.dtype == jnp.float32
    np.testing.assert_array_equal(h[0, :, 0], 2 - 2.0 ** -np.arange(9))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(b=jnp.zeros((2, 5, 4))), r"b must have shape \(B, T, D\) = \(2, 5, 3\)"),
        (dict(a=jnp.zeros((2, 5, 3), jnp.int32)), "a must be floating point"),
        (dict(segment_ids=jnp.ones((2, 5))), "segment_ids must be integers"),
        (dict(impl="pallas"), "no kernel yet"),
        (
            dict(initial_state=RecurrenceState(jnp.zeros((2, 4)), jnp.zeros(2, jnp.int32))),
            "initial_state.h_BD must have shape",
        ),
    ],
)
def test_errors(change, message):
    arguments = dict(a=jnp.zeros((2, 5, 3)), b=jnp.zeros((2, 5, 3))) | change
    with pytest.raises(ValueError, match=message):
        linear_recurrence(arguments.pop("a"), arguments.pop("b"), **arguments)
