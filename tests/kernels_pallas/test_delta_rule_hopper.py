"""The Hopper kernels of the delta rule, interpreted.

Their products are of bfloat16. An interpreter multiplies float32 too, which no chip would: tests that
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
from subjects.delta_rule import delta_subject

from kernels_pallas import delta_rule as op
from kernels_pallas import dispatch, mosaic_gpu, testing

#: One by default, all among the slow tests.
ONE = ("head", pytest.param("channel", marks=pytest.mark.slow))
ON_A_HOPPER = dict(platform="gpu", interpret=plgpu.InterpretGPUParams())


def subject(gate, kv_heads=1, repeats=1, key_size=64, value_size=64, **options):
    return delta_subject(gate, kv_heads, repeats, key_size, value_size, **options)


def any_dtype(row: dispatch.Backend) -> dispatch.Backend:
    if row.name != "hopper":
        return row
    features = dict.fromkeys(("dtype", "key_dtype", "precision"), dispatch.ANY)
    return dataclasses.replace(row, limits=row.limits | features)


@pytest.fixture
def float32_too(monkeypatch):
    monkeypatch.setattr(op, "SUPPORT", tuple(map(any_dtype, op.SUPPORT)))


@pytest.fixture(scope="module", params=ONE)
def held(request):
    # More than one chunk, the last not full; value heads that share a key head.
    repeats = dict(head=2, channel=1)[request.param]
    rng = np.random.default_rng(0)
    yield Held(subject(request.param, repeats=repeats), rng, batch=1, time=70, **ON_A_HOPPER)


@pytest.mark.parametrize(
    "law", [law if law == "packed" else pytest.param(law, marks=pytest.mark.slow) for law in LAWS]
)
def test_law(held, law, float32_too):
    LAWS[law](held)


@pytest.mark.slow
def test_without_a_gradient(held, float32_too):
    held.check_no_gradient()


@pytest.mark.parametrize("gate", ONE)
def test_bfloat16_errs_no_more_than_the_chunked_form_and_races_for_no_memory(gate):
    simulated = plgpu.InterpretGPUParams(detect_races=True)
    settings = dict(ON_A_HOPPER, interpret=simulated, batch=1, time=130)
    assert_as_good_as_chunked(subject(gate), np.random.default_rng(2), **settings)
    assert not mosaic_gpu.races_found()


SIZES = (
    ("none", dict(kv_heads=2, repeats=1, key_size=64, value_size=128), 130),
    ("head", dict(kv_heads=2, repeats=2, key_size=128, value_size=128), 63),
    ("head", dict(kv_heads=1, repeats=3, key_size=128, value_size=64), 200),
    ("channel", dict(kv_heads=1, repeats=2, key_size=128, value_size=128), 1),
    ("channel", dict(kv_heads=2, repeats=1, key_size=64, value_size=64), 300),
)


@pytest.mark.slow
@pytest.mark.parametrize("gate, sizes, time", SIZES)
def test_sizes(gate, sizes, time, float32_too):
    rng = np.random.default_rng(time)
    held = Held(subject(gate, **sizes), rng, batch=1, time=time, **ON_A_HOPPER)
    held.check_values()
    held.check_no_gradient()


@pytest.mark.slow
@pytest.mark.parametrize("longest_key, decay", ((0.3, 10.0), (3.0, 0.01)))
@pytest.mark.parametrize("gate", ("head", "channel"))
def test_strengths(gate, longest_key, decay, float32_too):
    strong = subject(gate, longest_key=longest_key, decay=decay)
    held = Held(strong, np.random.default_rng(3), batch=1, time=130, **ON_A_HOPPER)
    held.check_values()
    held.check_finite()


@pytest.mark.slow
def test_vmap(float32_too):
    mapped = interpreted(subject("head"), **ON_A_HOPPER)
    rng = np.random.default_rng(4)
    with jax.default_matmul_precision("highest"):
        testing.check_vmap(mapped, rng, 2, 1, 20, jnp.float32, 1e-5, "pallas")


def test_only_a_call_by_name_takes_the_kernel_and_only_where_it_is_covered():
    rng = np.random.default_rng(5)

    def kernels_of(impl, gate="head", dtype=jnp.bfloat16, precision=None, **sizes):
        drawn = subject(gate, **sizes)
        inputs = drawn.inputs(rng, 1, 64, dtype)
        run = functools.partial(drawn.apply, params={}, segment_ids=None, state=None, impl=impl)
        with dispatch.kernels_for("gpu"), jax.default_matmul_precision(precision):
            return str(jax.make_jaxpr(run)(inputs)).count("delta_rule_forward")

    assert kernels_of("pallas") and not kernels_of("auto")
    for uncovered in (
        dict(dtype=jnp.float32), dict(precision="highest"), dict(key_size=192), dict(value_size=32),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="does not support this call"):
            kernels_of("pallas", **uncovered)


@pytest.mark.slow
def test_a_planted_fault_is_caught(float32_too, monkeypatch):
    monkeypatch.setattr(mosaic_gpu, "along_rows", lambda numbers, shape: jnp.ones(shape))
    held = Held(subject("head"), np.random.default_rng(6), batch=1, time=70, **ON_A_HOPPER)
    with pytest.raises(AssertionError, match="off by"):
        LAWS["split"](held)
