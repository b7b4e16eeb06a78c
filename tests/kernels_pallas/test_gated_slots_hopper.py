"""The Hopper kernel of gated slots, interpreted.

Its products are of bfloat16. An interpreter multiplies float32 too, which no chip would: tests that
hold the algebra to float32 widen the support table for it.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from kernel_laws import LAWS, Held, interpreted
from rounding import assert_as_good_as_chunked
from subjects.gated_slots import slots_subject

from kernels_pallas import dispatch, mosaic_gpu, testing
from kernels_pallas import gated_slots as op

ON_A_HOPPER = dict(platform="gpu", interpret=plgpu.InterpretGPUParams())
#: Query heads that share slots; sizes that are padded to the kernel's.
SHARED = dict(heads=2, kv_heads=1, slots=12, key_size=24, value_size=40)


def any_dtype(row: dispatch.Backend) -> dispatch.Backend:
    if row.name != "hopper":
        return row
    features = dict.fromkeys(("dtype", "precision"), dispatch.ANY)
    return dataclasses.replace(row, limits=row.limits | features)


@pytest.fixture
def float32_too(monkeypatch):
    monkeypatch.setattr(op, "SUPPORT", tuple(map(any_dtype, op.SUPPORT)))


@pytest.fixture(scope="module")
def held():
    # More than one chunk, the last not full.
    yield Held(slots_subject(**SHARED), np.random.default_rng(0), batch=1, time=70, **ON_A_HOPPER)


@pytest.mark.parametrize(
    "law", [law if law == "packed" else pytest.param(law, marks=pytest.mark.slow) for law in LAWS]
)
def test_law(held, law, float32_too):
    LAWS[law](held)


@pytest.mark.slow
def test_without_a_gradient(held, float32_too):
    held.check_no_gradient()


def test_bfloat16_errs_no_more_than_the_chunked_form_and_races_for_no_memory():
    simulated = plgpu.InterpretGPUParams(detect_races=True)
    settings = dict(ON_A_HOPPER, interpret=simulated, batch=1, time=130)
    drawn = slots_subject(heads=1, kv_heads=1, slots=32, key_size=32, value_size=32)
    assert_as_good_as_chunked(drawn, np.random.default_rng(2), **settings)
    assert not mosaic_gpu.races_found()


SIZES = (
    (dict(heads=4, kv_heads=1, slots=128, key_size=64, value_size=128), 130),
    (dict(heads=2, kv_heads=2, slots=64, key_size=128, value_size=64, tied=False), 63),
    (dict(heads=3, kv_heads=1, slots=1, key_size=3, value_size=200, strength=20.0), 1),
    (dict(heads=1, kv_heads=1, slots=40, key_size=16, value_size=8, gaps=True, mask_empty=True), 300),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("sizes, time", SIZES)
def test_sizes(sizes, time, float32_too):
    rng = np.random.default_rng(time)
    held = Held(slots_subject(**sizes), rng, batch=1, time=time, **ON_A_HOPPER)
    held.check_values()
    held.check_no_gradient()


@pytest.mark.slow
def test_vmap(float32_too):
    mapped = interpreted(slots_subject(**SHARED), **ON_A_HOPPER)
    rng = np.random.default_rng(4)
    with jax.default_matmul_precision("highest"):
        testing.check_vmap(mapped, rng, 2, 1, 20, jnp.float32, 1e-5, "pallas")


@pytest.mark.slow
@pytest.mark.parametrize("fence", ("publish", "wait_for_reads"))
def test_a_missing_fence_is_a_race(fence, monkeypatch):
    monkeypatch.setattr(mosaic_gpu, fence, lambda *unfinished: None)
    simulated = plgpu.InterpretGPUParams(detect_races=True)
    settings = dict(ON_A_HOPPER, interpret=simulated, precision=None, dtype=jnp.bfloat16)
    held = Held(slots_subject(), np.random.default_rng(7), batch=1, time=260, **settings)
    jax.block_until_ready(held.run(*held.draw()))
    assert mosaic_gpu.races_found()


def test_only_a_call_by_name_takes_the_kernel_and_only_where_it_is_covered():
    rng = np.random.default_rng(5)

    def kernels_of(impl, dtype=jnp.bfloat16, precision=None, **sizes):
        drawn = slots_subject(**sizes)
        inputs = drawn.inputs(rng, 1, 64, dtype)
        run = functools.partial(drawn.apply, params={}, segment_ids=None, state=None, impl=impl)
        with dispatch.kernels_for("gpu"), jax.default_matmul_precision(precision):
            return str(jax.make_jaxpr(run)(inputs)).count("gated_slots_forward")

    assert kernels_of("pallas") and not kernels_of("auto")
    for uncovered in (
        dict(dtype=jnp.float32), dict(precision="highest"), dict(slots=129), dict(heads=10),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="does not support this call"):
            kernels_of("pallas", **uncovered)


@pytest.mark.slow
def test_a_planted_fault_is_caught(float32_too, monkeypatch):
    monkeypatch.setattr(mosaic_gpu, "along_rows", lambda numbers, shape: jnp.ones(shape))
    held = Held(slots_subject(), np.random.default_rng(6), batch=1, time=70, **ON_A_HOPPER)
    with pytest.raises(AssertionError, match="off by"):
        LAWS["split"](held)
