"""The causal convolution against the laws, its tap order and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from op_subjects import a_boundary, conv_subject

from kernels_pallas import testing
from kernels_pallas.causal_conv import ConvState, causal_conv

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=5, deadline=None)
@given(seed=seeds, time=st.integers(1, 100), width=st.integers(1, 8), bias=st.booleans())
def test_chunked_is_reference(seed, time, width, bias):
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        ids = testing.draw_segment_ids(rng, 2, time)
        subject = conv_subject(width=width, bias=bias)
        testing.check_forms(subject, rng, 2, time, segment_ids=ids)


def test_float32():
    rng = np.random.default_rng(1)
    testing.check_forms(conv_subject(), rng, 2, 127, jnp.float32, 1e-5)


def test_packed_is_separate(x64):
    rng = np.random.default_rng(2)
    cut = int(rng.integers(2, 40))
    testing.check_packed(conv_subject(), rng, [1, cut, 30, 1, 2], gaps=[0, 1, 0, 0, 5])


def test_split_is_whole(x64):
    rng = np.random.default_rng(3)
    ids = testing.draw_segment_ids(rng, 3, 60)
    cuts = sorted({a_boundary(ids), *(int(c) for c in rng.integers(1, 60, size=2))})
    testing.check_split(conv_subject(), rng, 3, 60, cuts, segment_ids=ids)
    testing.check_split(conv_subject(width=1), rng, 3, 60, cuts, segment_ids=ids)
    testing.check_split(conv_subject(), rng, 3, 9, range(1, 9), segment_ids=ids[:, :9])


def test_causal_and_padding_inert():
    rng = np.random.default_rng(4)
    ids = testing.draw_segment_ids(rng, 2, 90)
    testing.check_causal(conv_subject(), rng, 2, 90, int(rng.integers(1, 90)), ids)


@pytest.mark.parametrize("time", [1, 63, 127, 1000])
def test_finite(time):
    rng = np.random.default_rng(5)
    ids = testing.draw_segment_ids(rng, 2, time)
    testing.check_finite(conv_subject(), rng, 2, time, segment_ids=ids)


def test_deterministic_and_vmap(x64):
    rng = np.random.default_rng(6)
    testing.check_deterministic(conv_subject(), rng, 2, 150)
    testing.check_vmap(conv_subject(), rng, 3, 1, 40)


def test_tap_order():
    """kernel_WD[i] multiplies the input i tokens back."""
    x = jnp.zeros((1, 6, 1)).at[0, 1].set(1.0)
    for impl in ("reference", "chunked"):
        y = causal_conv(x, jnp.asarray([[2.0], [3.0], [5.0]]), impl=impl)
        np.testing.assert_array_equal(y[0, :, 0], [0, 2, 3, 5, 0, 0])


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(kernel_WD=jnp.zeros((9, 3))), r"W in 1..8"),
        (dict(kernel_WD=jnp.zeros((4, 2))), "kernel must have shape"),
        (dict(bias_D=jnp.zeros(2)), "bias must have shape"),
        (dict(segment_ids=jnp.ones((2, 5))), "segment_ids must be integers"),
        (dict(impl="pallas"), "no kernel yet"),
        (
            dict(initial_state=ConvState(jnp.zeros((2, 4, 3)), jnp.zeros((2, 4), jnp.int32))),
            "initial_state.x_BSD must have shape",
        ),
    ],
)
def test_errors(change, message):
    arguments = dict(x_BTD=jnp.zeros((2, 5, 3)), kernel_WD=jnp.zeros((4, 3))) | change
    with pytest.raises(ValueError, match=message):
        causal_conv(**arguments)
