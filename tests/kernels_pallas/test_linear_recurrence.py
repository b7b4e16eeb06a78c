"""The linear recurrence beside the laws: exact gates, float32 states, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects.linear_recurrence import recurrence_subject

from kernels_pallas import testing
from kernels_pallas.linear_recurrence import RecurrenceState, linear_recurrence
from kernels_pallas.linear_recurrence.gates import sqrt_bounded


@pytest.mark.parametrize("time", [1000])
def test_finite(time):
    rng = np.random.default_rng(5)
    ids = testing.draw_segment_ids(rng, 2, time)
    testing.check_finite(recurrence_subject(), rng, 2, time, segment_ids=ids)


def test_gates_0_and_1_are_exact():
    """Gate 0 copies the input, gate 1 sums integers without rounding."""
    b = jnp.asarray(np.random.default_rng(6).integers(-8, 9, (2, 500, 3)), jnp.float32)
    np.testing.assert_array_equal(linear_recurrence(jnp.zeros_like(b), b), b)
    np.testing.assert_array_equal(linear_recurrence(jnp.ones_like(b), b), jnp.cumsum(b, 1))


def test_the_slope_of_the_square_root_is_bounded():
    assert float(jax.grad(sqrt_bounded)(0.0)) == 1000.0
    assert float(jax.grad(sqrt_bounded)(0.25)) == 1.0


def test_vmap(x64):
    rng = np.random.default_rng(7)
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
        (dict(impl="pallas"), "lacks platform=cpu"),
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
