"""The laws for the TPU kernels of gated slots, interpreted, in chunks of 16 tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreted import check_against_float64, errors, kernels
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu
from subjects.gated_slots import slots_subject

from kernels_pallas import testing
from kernels_pallas.gated_slots import tpu
from kernels_pallas.testing import draw_segment_ids

SUBJECTS = {
    "tied": dict(heads=2, kv_heads=1),
    "strong gates": dict(heads=2, kv_heads=2, strength=20.0, tied=False),
    "gaps": dict(heads=1, kv_heads=1, mask_empty=True, gaps=True, slots=32),
}
by_kind = pytest.mark.parametrize("kind", SUBJECTS)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(tpu, "CHUNK", 16)
    with kernels():
        yield


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    "kind", ["tied", *(pytest.param(k, marks=pytest.mark.slow) for k in list(SUBJECTS)[1:])]
)
def test_kernel_is_the_reference(kind):
    subject, ids = slots_subject(**SUBJECTS[kind]), draw_segment_ids(rng(), 2, 41)
    check_against_float64(subject, rng(), 2, 41, ids, with_state=True)


@pytest.mark.parametrize("time", [1, 15, 17, 63, 127])
@pytest.mark.slow
@by_kind
def test_kernel_is_the_reference_at_any_length(kind, time, monkeypatch):
    monkeypatch.setattr(tpu, "CHUNK", 64)
    subject, ids = slots_subject(**SUBJECTS[kind]), draw_segment_ids(rng(time), 2, time)
    check_against_float64(subject, rng(time), 2, time, ids, with_state=True)


@pytest.mark.slow
def test_packed_is_separate():
    subject = slots_subject(**SUBJECTS["tied"])
    testing.check_packed(subject, rng(), [1, 20, 20], [0, 3, 0], jnp.float32, 1e-5, impl="pallas")


@pytest.mark.slow
def test_split_is_whole():
    subject, ids = slots_subject(**SUBJECTS["gaps"]), draw_segment_ids(rng(), 1, 30, padding=0)
    testing.check_split(
        subject, rng(), 1, 30, [19], ids, jnp.float32, 1e-5, impl="pallas", with_state=False
    )


@pytest.mark.slow
def test_causal():
    subject, ids = slots_subject(**SUBJECTS["tied"]), draw_segment_ids(rng(1), 2, 30)
    testing.check_causal(subject, rng(), 2, 30, 11, ids, impl="pallas")


@pytest.mark.slow
def test_finite():
    testing.check_finite(slots_subject(**SUBJECTS["tied"]), rng(), 1, 33, impl="pallas")


@pytest.mark.slow
def test_deterministic():
    testing.check_deterministic(slots_subject(**SUBJECTS["tied"]), rng(), 1, 33, impl="pallas")


def test_uninitialised_memory_and_races():
    subject, ids = slots_subject(**SUBJECTS["tied"]), draw_segment_ids(rng(2), 1, 33)
    with kernels(pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")):
        check_against_float64(subject, rng(), 1, 33, ids)
    assert not interpret_pallas_call.races.races_found


@pytest.mark.slow
def test_rounded_as_on_a_chip(monkeypatch):
    """With bfloat16 products the kernel's error against float64 is at most 1.5 times that of the chunked
    form with the same products, as on a TPU."""
    subject = slots_subject(heads=2, kv_heads=1, slots=32, key_size=32, value_size=32)
    matmul = jnp.matmul

    def rounded(x, y, **options):
        if x.dtype == jnp.float64:
            return matmul(x, y, **options)
        x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
        return matmul(x, y, preferred_element_type=jnp.float32, **options)

    monkeypatch.setattr(jnp, "matmul", rounded)

    def worst(impl):
        with kernels(precision="default"):
            want, (got,) = errors(subject, rng(), 2, 65, None, False, (impl,), jnp.bfloat16)
        return [testing.error(x, y) for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want))]

    ours, chunked = worst("pallas"), worst("chunked")
    figures = [f"{got:.2e} of {allowed:.2e}" for got, allowed in zip(ours, chunked)]
    assert all(got <= 1.5 * allowed + 1e-6 for got, allowed in zip(ours, chunked)), figures
