"""The causal convolution beside the laws: its tap order, its activation and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects.causal_conv import check_silu_by_hand, conv_subject

from kernels_pallas import testing
from kernels_pallas.causal_conv import ConvState, causal_conv


@pytest.mark.parametrize("time", [1000])
def test_finite(time):
    rng = np.random.default_rng(5)
    ids = testing.draw_segment_ids(rng, 2, time)
    testing.check_finite(conv_subject(), rng, 2, time, segment_ids=ids)


def test_vmap(x64):
    rng = np.random.default_rng(6)
    testing.check_vmap(conv_subject(), rng, 3, 1, 40)


def test_tap_order():
    """kernel_WD[i] multiplies the input i tokens back."""
    x = jnp.zeros((1, 6, 1)).at[0, 1].set(1.0)
    for impl in ("reference", "chunked"):
        y = causal_conv(x, jnp.asarray([[2.0], [3.0], [5.0]]), impl=impl)
        np.testing.assert_array_equal(y[0, :, 0], [0, 2, 3, 5, 0, 0])


@pytest.mark.parametrize("impl", ["reference", "chunked"])
@pytest.mark.parametrize("packed, with_state", [(False, False), (True, False), (True, True)])
def test_silu_and_all_gradients_are_those_by_hand(impl, packed, with_state, x64):
    check_silu_by_hand(np.random.default_rng(7), 19, packed, with_state, impl, jnp.float64, 1e-12)


def test_silu_is_of_the_sums_before_they_are_rounded():
    """bfloat16 is rounded once: the result is that of float32 inputs, rounded."""
    rng = np.random.default_rng(8)
    x, kernel = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in [(2, 40, 5), (4, 5)])
    for impl in ("reference", "chunked"):
        whole = causal_conv(x.astype(jnp.float32), kernel, impl=impl)
        want = jax.nn.silu(whole).astype(jnp.bfloat16)
        got = causal_conv(x, kernel, activation="silu", impl=impl)
        assert got.dtype == jnp.bfloat16
        np.testing.assert_array_equal(got.astype(jnp.float32), want.astype(jnp.float32))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(kernel_WD=jnp.zeros((9, 3))), r"W in 1..8"),
        (dict(kernel_WD=jnp.zeros((4, 2))), "kernel must have shape"),
        (dict(bias_D=jnp.zeros(2)), "bias must have shape"),
        (dict(segment_ids=jnp.ones((2, 5))), "segment_ids must be integers"),
        (dict(impl="pallas"), "lacks platform=cpu"),
        (dict(activation="relu"), "activation must be \"silu\" or None, got 'relu'"),
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
