"""The Hopper kernels of the linear recurrence, interpreted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from kernel_laws import LAWS, Held
from subjects.linear_recurrence import gated_subject, recurrence_subject

from kernels_pallas import dispatch, mosaic_gpu, testing
from kernels_pallas.linear_recurrence import SUPPORT, gated_recurrence, hopper

SUBJECTS = {"linear": recurrence_subject, "gated": gated_subject}
INTERPRET = plgpu.InterpretGPUParams()
#: The gated kernel does all that the other does and more; the other runs with the slow tests.
ONE = ("gated", pytest.param("linear", marks=pytest.mark.slow))


def hold(subject, rng, interpret=INTERPRET, **sizes):
    return Held(subject, rng, interpret=interpret, platform="gpu", **sizes)


@pytest.fixture(scope="module", autouse=True)
def short_tiles():
    rows, hopper.ROWS, hopper.BACKWARD_ROWS = (hopper.ROWS, hopper.BACKWARD_ROWS), 4, 4
    yield
    hopper.ROWS, hopper.BACKWARD_ROWS = rows


@pytest.fixture(scope="module", params=ONE)
def held(request, short_tiles):
    # Warpgroups with two tiles and with one, the last tile not full, channels that do not fill a block.
    yield hold(SUBJECTS[request.param](), np.random.default_rng(0), batch=1, time=14)


#: The interpreter is a thousand times slower than a chip; "split" also checks the values.
QUICK = ("split",)


@pytest.mark.parametrize(
    "law", [law if law in QUICK else pytest.param(law, marks=pytest.mark.slow) for law in LAWS]
)
def test_law(held, law):
    LAWS[law](held)


@pytest.mark.parametrize("subject", ONE)
def test_memory_is_initialised_and_free_of_races(subject):
    simulated = plgpu.InterpretGPUParams(detect_races=True, uninitialized_memory="nan")
    held = hold(SUBJECTS[subject](), np.random.default_rng(1), simulated, time=9)
    held.check_values()
    assert not mosaic_gpu.races_found()


def test_bfloat16_gates_run_in_float32():
    held = hold(recurrence_subject(), np.random.default_rng(3), batch=1, time=6, dtype=jnp.bfloat16)
    arguments = held.draw()
    got, want = held.run(*arguments), held.reference(*arguments)
    assert jax.tree.leaves(got["outputs"])[0].dtype == jnp.float32
    testing.assert_close("values", *(r["outputs"] for r in (got, want)), 1e-5)
    # Gradients have the dtype of the inputs.
    testing.assert_close("gradients", *(r["gradients"] for r in (got, want)), 2**-8)


@pytest.mark.slow
@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("rows, time, channels", [(8, 1, 1), (32, 127, 128), (32, 64, 200)])
def test_sizes(subject, rows, time, channels, monkeypatch):
    monkeypatch.setattr(hopper, "ROWS", rows)
    monkeypatch.setattr(hopper, "BACKWARD_ROWS", max(4, rows // 2))
    held = hold(SUBJECTS[subject](channels), np.random.default_rng(time), time=time, batch=1)
    held.check_values()
    held.check_no_gradient()


def test_only_a_call_by_name_takes_the_kernel():
    case = dict(
        dtype="float32", input_dtype="bfloat16", state_dtype="float32", channels=5, gated=True
    )
    with dispatch.kernels_for("gpu", INTERPRET):
        assert dispatch.resolve("gated_recurrence", "pallas", case, SUPPORT) == "hopper"
        assert dispatch.resolve("gated_recurrence", "auto", case, SUPPORT) == "chunked"
        wide = jnp.zeros((1, 3, 2)), jnp.zeros((1, 3, 2), jnp.float16)
        with pytest.raises(ValueError, match="input_dtype=float16"):
            gated_recurrence(*wide, impl="pallas")
