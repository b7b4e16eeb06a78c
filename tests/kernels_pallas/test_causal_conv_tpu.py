"""The TPU kernels of the causal convolution, interpreted."""

import jax.numpy as jnp
import numpy as np
import pytest
from interpreted import check_against_float64, kernels
from jax.experimental.pallas import tpu as pltpu
from kernel_laws import races_found
from subjects.causal_conv import check_silu_by_hand, conv_subject

from kernels_pallas import testing
from kernels_pallas.causal_conv import causal_conv, tpu


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(tpu, "TIME_BLOCK", 32)


@pytest.mark.parametrize(
    "width, bias, activation",
    [(4, True, None), (8, False, None), (4, True, "silu"), (8, True, "silu")],
)
def test_values_and_gradients_over_blocks(width, bias, activation):
    rng = np.random.default_rng(width)
    ids = testing.draw_segment_ids(rng, 2, 70)
    subject = conv_subject(130, width, bias, activation)
    with kernels():
        check_against_float64(subject, rng, 2, 70, ids, with_state=True)


@pytest.mark.parametrize("packed, with_state", [(False, False), (True, True)])
def test_silu_and_all_gradients_are_those_by_hand(packed, with_state):
    rng = np.random.default_rng(9)
    with kernels():
        check_silu_by_hand(rng, 67, packed, with_state, "pallas", jnp.float32, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("time, channels", [(1, 1), (16, 128), (33, 640), (127, 5), (200, 256)])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_sizes(width, time, channels, activation):
    rng = np.random.default_rng(time + width)
    ids = testing.draw_segment_ids(rng, 2, time)
    with kernels():
        subject = conv_subject(channels, width, bool(width % 2), activation)
        check_against_float64(subject, rng, 2, time, ids, with_state=True)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("seed", [4, pytest.param(5, marks=pytest.mark.slow)])
def test_nan_and_infinity_reach_no_other_document(seed, activation):
    rng = np.random.default_rng(seed)
    ids = testing.draw_segment_ids(rng, 2, 40)
    subject = conv_subject(3, activation=activation)
    with kernels():
        testing.check_contained(subject, rng, 2, 40, 17, ids, jnp.float32, 1e-5, impl="pallas")


@pytest.mark.parametrize("activation", [None, "silu"])
def test_bfloat16_is_rounded_once(activation):
    """Sums are float32: results differ from float64's by the rounding of outputs."""
    rng, options = np.random.default_rng(1), dict(dtype=jnp.bfloat16, tolerance=2**-8)
    with kernels():
        check_against_float64(
            conv_subject(activation=activation), rng, 1, 40, with_state=True, **options
        )


def test_memory_is_initialised_and_free_of_races():
    simulated = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    rng = np.random.default_rng(2)
    ids = testing.draw_segment_ids(rng, 2, 33)
    subject = conv_subject(activation="silu")
    with kernels(simulated):
        check_against_float64(subject, rng, 2, 33, ids, with_state=True)
    assert not races_found()


def test_auto_takes_the_kernel_and_splitting_is_exact():
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(1, 50, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
    with kernels():
        whole = causal_conv(x, kernel, activation="silu")
        first, state = causal_conv(x[:, :18], kernel, return_state=True, activation="silu")
        second = causal_conv(x[:, 18:], kernel, initial_state=state, activation="silu")
    np.testing.assert_array_equal(jnp.concatenate([first, second], axis=1), whole)
    want = causal_conv(x, kernel, activation="silu", impl="reference")
    np.testing.assert_allclose(whole, want, atol=1e-5)
