"""The Hopper kernel of gated slots, interpreted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from kernel_laws import LAWS, Held
from subjects.gated_slots import slots_subject
from walks import (
    ON_A_HOPPER,
    check_coverage,
    check_planted_fault,
    check_rounding_and_races,
    check_vmap,
    each_law,
    hold,
    widened,
)

from kernels_pallas import gated_slots as op
from kernels_pallas import mosaic_gpu

#: Query heads that share slots; sizes that are padded.
SHARED = dict(heads=2, kv_heads=1, slots=12, key_size=24, value_size=40)


@pytest.fixture
def float32_too(monkeypatch):
    monkeypatch.setattr(op, "SUPPORT", widened(op.SUPPORT))


@pytest.fixture(scope="module")
def held():
    # Several chunks, the last not full.
    yield hold(slots_subject(**SHARED), 0, 70)


@each_law
def test_law(held, law, float32_too):
    LAWS[law](held)


@pytest.mark.slow
def test_without_a_gradient(held, float32_too):
    held.check_no_gradient()


def test_bfloat16_is_as_exact_as_in_the_chunked_form_and_free_of_races():
    check_rounding_and_races(
        slots_subject(heads=1, kv_heads=1, slots=32, key_size=32, value_size=32)
    )


SIZES = (
    (dict(heads=4, kv_heads=1, slots=128, key_size=64, value_size=128), 130),
    (dict(heads=2, kv_heads=2, slots=64, key_size=128, value_size=64, tied=False), 63),
    (dict(heads=3, kv_heads=1, slots=1, key_size=3, value_size=200, strength=20.0), 1),
    (
        dict(heads=1, kv_heads=1, slots=40, key_size=16, value_size=8, gaps=True, mask_empty=True),
        300,
    ),
)


@pytest.mark.slow
@pytest.mark.parametrize("sizes, time", SIZES)
def test_sizes(sizes, time, float32_too):
    held = hold(slots_subject(**sizes), time, time)
    held.check_values()
    held.check_no_gradient()


@pytest.mark.slow
def test_vmap(float32_too):
    check_vmap(slots_subject(**SHARED))


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
    check_coverage(slots_subject, "gated_slots_forward", dict(slots=129), dict(heads=10))


@pytest.mark.slow
def test_a_planted_fault_is_caught(float32_too, monkeypatch):
    check_planted_fault(slots_subject(), monkeypatch)
