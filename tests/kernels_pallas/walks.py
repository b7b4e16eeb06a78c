"""Shared by the tests of the Hopper kernels that use `hopper_walk`.

Their products are bfloat16. The interpreter also multiplies float32, which the chip does not: tests
that check the algebra in float32 widen the support table (`float32_too`).
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from kernel_laws import LAWS, Held, interpreted
from rounding import assert_as_good_as_chunked

from kernels_pallas import dispatch, mosaic_gpu, testing

ON_A_HOPPER = dict(platform="gpu", interpret=plgpu.InterpretGPUParams())
#: "packed" by default, the others with the slow tests: each takes seconds.
each_law = pytest.mark.parametrize(
    "law", [law if law == "packed" else pytest.param(law, marks=pytest.mark.slow) for law in LAWS]
)


def widened(support: tuple[dispatch.Backend, ...]) -> tuple[dispatch.Backend, ...]:
    """The table with Hopper kernels that support inputs and products of any dtype."""

    def any_dtype(row: dispatch.Backend) -> dispatch.Backend:
        if row.name != "hopper":
            return row
        features = {"dtype", "key_dtype", "precision"} & row.limits.keys()
        return dataclasses.replace(row, limits=row.limits | dict.fromkeys(features, dispatch.ANY))

    return tuple(map(any_dtype, support))


def hold(subject: testing.Subject, seed: int, time: int) -> Held:
    return Held(subject, np.random.default_rng(seed), batch=1, time=time, **ON_A_HOPPER)


def check_rounding_and_races(subject: testing.Subject) -> None:
    """bfloat16 is as exact as in the chunked form, and there is no race."""
    settings = dict(ON_A_HOPPER, interpret=plgpu.InterpretGPUParams(detect_races=True))
    assert_as_good_as_chunked(subject, np.random.default_rng(2), batch=1, time=130, **settings)
    assert not mosaic_gpu.races_found()


def check_vmap(subject: testing.Subject) -> None:
    mapped, rng = interpreted(subject, **ON_A_HOPPER), np.random.default_rng(4)
    with jax.default_matmul_precision("highest"):
        testing.check_vmap(mapped, rng, 2, 1, 20, jnp.float32, 1e-5, "pallas")


def check_coverage(subject_of: Callable, kernel: str, *uncovered: dict) -> None:
    """Only a call by name takes the kernel, and only in covered cases; `uncovered` are options of
    `subject_of`, dtypes or precisions."""
    rng = np.random.default_rng(5)

    def kernels_of(impl, dtype=jnp.bfloat16, precision=None, **options):
        drawn = subject_of(**options)
        inputs = drawn.inputs(rng, 1, 64, dtype)
        run = functools.partial(drawn.apply, params={}, segment_ids=None, state=None, impl=impl)
        with dispatch.kernels_for("gpu"), jax.default_matmul_precision(precision):
            return str(jax.make_jaxpr(run)(inputs)).count(kernel)

    assert kernels_of("pallas") and not kernels_of("auto")
    for options in (dict(dtype=jnp.float32), dict(precision="highest"), *uncovered):
        with pytest.raises(ValueError, match="does not support this call"):
            kernels_of("pallas", **options)


def check_planted_fault(subject: testing.Subject, monkeypatch) -> None:
    """A state that does not decay is caught."""
    monkeypatch.setattr(mosaic_gpu, "along_rows", lambda numbers, shape: jnp.ones(shape))
    with pytest.raises(AssertionError, match="off by"):
        LAWS["split"](hold(subject, 6, 70))
