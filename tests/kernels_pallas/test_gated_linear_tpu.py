"""The TPU kernels of gated linear attention, interpreted."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from kernel_laws import LAWS, Held, interpreted, races_found
from rounding import assert_as_good_as_chunked
from subjects.gated_linear import gated_subject

from kernels_pallas import testing, tpu_grid

#: One case by default, all with the slow tests.
ONE = ("token", pytest.param("channel", marks=pytest.mark.slow))
DECAYS = ("token", "channel")


def subject(decay, groups=1, ratio=1, key_size=64, value_size=64, **options):
    return gated_subject(groups, ratio, key_size, value_size, decay, scale=0.25, **options)


@pytest.fixture
def short_chunks(monkeypatch):
    monkeypatch.setattr(tpu_grid, "CHUNK", 16)


@pytest.fixture(scope="module", params=DECAYS)
def held(request):
    # Several chunks, the last not full; value heads that share a key head.
    length, tpu_grid.CHUNK = tpu_grid.CHUNK, 16
    ratio = dict(token=2, channel=1)[request.param]
    yield Held(subject(request.param, ratio=ratio), np.random.default_rng(0), time=38)
    tpu_grid.CHUNK = length


@pytest.mark.parametrize("law", LAWS)
def test_law(held, law):
    LAWS[law](held)


@pytest.mark.parametrize("decay", ONE)
def test_memory_is_initialised_and_free_of_races(decay, short_chunks):
    simulated = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    rng = np.random.default_rng(1)
    Held(subject(decay), rng, batch=1, time=20, interpret=simulated).check_values()
    assert not races_found()


@pytest.mark.parametrize("decay", ONE)
def test_rounded_products_are_as_exact_as_in_the_chunked_form(decay, monkeypatch):
    monkeypatch.setattr(tpu_grid, "CHUNK", 32)
    rng = np.random.default_rng(2)
    assert_as_good_as_chunked(subject(decay, strength=0.01), rng, batch=1, time=80)


SIZES = (
    ("head", dict(groups=2, ratio=1, key_size=128, value_size=64), 200),
    ("token", dict(groups=1, ratio=8, key_size=128, value_size=64), 63),
    ("token", dict(groups=8, ratio=1, key_size=64, value_size=64), 200),
    ("token", dict(groups=2, ratio=3, key_size=64, value_size=128), 127),
    ("token", dict(groups=3, ratio=1, key_size=256, value_size=192), 130),
    ("channel", dict(groups=1, ratio=3, key_size=128, value_size=128), 1),
    ("channel", dict(groups=4, ratio=1, key_size=64, value_size=128), 300),
    ("channel", dict(groups=1, ratio=2, key_size=192, value_size=256), 127),
)


@pytest.mark.slow
@pytest.mark.parametrize("decay, sizes, time", SIZES)
def test_sizes(decay, sizes, time):
    held = Held(subject(decay, **sizes), np.random.default_rng(time), batch=1, time=time)
    held.check_values()
    held.check_no_gradient()


@pytest.mark.slow
@pytest.mark.parametrize("strength", (1e-3, 1.0, 10.0))
@pytest.mark.parametrize("decay", DECAYS)
def test_strengths(decay, strength):
    held = Held(subject(decay, strength=strength), np.random.default_rng(3), time=260)
    held.check_values()
    held.check_finite()


@pytest.mark.slow
def test_vmap(short_chunks):
    mapped = interpreted(subject("token"))
    rng = np.random.default_rng(4)
    testing.check_vmap(mapped, rng, 2, 1, 20, jnp.float32, 1e-5, "pallas")
