"""The TPU kernels of the linear recurrence, interpreted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from kernel_laws import LAWS, Held, interpreted, races_found
from subjects.linear_recurrence import gated_subject, recurrence_subject

from kernels_pallas import testing
from kernels_pallas.linear_recurrence import tpu

SUBJECTS = {"linear": recurrence_subject, "gated": gated_subject}


#: The gated kernel does all that the other does and more; the other runs with the slow tests.
ONE = ("gated", pytest.param("linear", marks=pytest.mark.slow))


@pytest.fixture(scope="module", params=ONE)
def held(request):
    # Several time blocks, the last not full, and channels that do not fill a register.
    time, tpu.TIME_BLOCK = tpu.TIME_BLOCK, 32
    yield Held(SUBJECTS[request.param](), np.random.default_rng(0), time=70)
    tpu.TIME_BLOCK = time


@pytest.mark.parametrize("law", LAWS)
def test_law(held, law):
    LAWS[law](held)


@pytest.mark.parametrize("subject", ONE)
def test_memory_is_initialised_and_free_of_races(subject, monkeypatch):
    monkeypatch.setattr(tpu, "TIME_BLOCK", 32)
    simulated = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    held = Held(SUBJECTS[subject](), np.random.default_rng(1), time=33, interpret=simulated)
    held.check_values()
    assert not races_found()


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("time, channels", [(1, 1), (16, 128), (127, 640), (1000, 256)])
def test_sizes(subject, time, channels):
    held = Held(SUBJECTS[subject](channels), np.random.default_rng(time), time=time)
    held.check_values()
    held.check_no_gradient()


@pytest.mark.slow
def test_vmap():
    subject = interpreted(recurrence_subject())
    rng = np.random.default_rng(2)
    testing.check_vmap(subject, rng, 2, 1, 20, jnp.float32, 1e-6, "pallas")


def test_bfloat16_gates_run_in_float32():
    subject = recurrence_subject()
    held = Held(subject, np.random.default_rng(3), time=20, dtype=jnp.bfloat16)
    arguments = held.draw()
    got, want = held.run(*arguments), held.reference(*arguments)
    assert jax.tree.leaves(got["outputs"])[0].dtype == jnp.float32
    testing.assert_close("values", *(r["outputs"] for r in (got, want)), 1e-5)
    # Gradients have the dtype of the inputs.
    testing.assert_close("gradients", *(r["gradients"] for r in (got, want)), 2**-8)
