"""Native Hybrid Attention with a traced window is the mixer of each window, in one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from hybridlm.models.mixers import LayerSpec, read_mixer
from hybridlm.models.mixers.traced_nha import ALL_TOKENS, TracedNHAConfig
from kernels_pallas import dispatch
from kernels_pallas.testing import error

WIDTH, TIME = 16, 23
IDS = np.asarray([[1] * 11 + [2] * 2 + [1] * 8 + [0] * 2, [0] + [3] * 21 + [4]])
SETTINGS = dict(heads=4, kv_heads=2, slots=3)


@pytest.fixture(autouse=True)
def reference_forms():
    """Uses the reference forms, which compile fastest."""
    with dispatch.auto_means("reference"):
        yield


def pair(window, **settings):
    """(the mixer of this window, the traced one with the same parameters)."""
    spec = LayerSpec(WIDTH, 1e-6, 1.0)
    fixed = read_mixer(dict(kind="nha", window=window, **SETTINGS | settings), "m")
    fixed = fixed.build(spec, rngs=nnx.Rngs(0))
    traced = TracedNHAConfig(**SETTINGS | settings).build(spec, rngs=nnx.Rngs(1))
    nnx.update(traced, nnx.state(fixed))
    return fixed, with_span(traced, ALL_TOKENS if window is None else window)


def with_span(mixer, window):
    mixer.span[...] = jnp.float32(window)
    return mixer


def inputs(seed=1):
    x = np.random.default_rng(seed).standard_normal((2, TIME, WIDTH))
    return jnp.asarray(x, jnp.float32), small.context(IDS)


@pytest.mark.parametrize("empty_slots", ["null", "masked"])
@pytest.mark.parametrize("window", [0, 1, 4, TIME - 1, TIME, 40, None])
def test_it_is_the_mixer_of_each_window(window, empty_slots):
    fixed, traced = pair(window, empty_slots=empty_slots)
    x, context = inputs()
    real = (IDS != 0)[..., None]
    want, got = (np.where(real, m(x, context), 0) for m in (fixed, traced))
    assert error(got, want) < 2e-6
    shares = [np.asarray(m.slot_share(x, context)) for m in (fixed, traced)]
    np.testing.assert_allclose(shares[1], shares[0], atol=2e-6)


@pytest.mark.parametrize("window", [0, 5, None])
def test_gradients_are_those_of_the_mixer_and_the_window_has_none(window):
    fixed, traced = pair(window)
    x, context = inputs()
    loss = nnx.grad(lambda m: jnp.sum(jnp.sin(m(x, context))))
    want, got = (nnx.to_pure_dict(nnx.state(loss(m))) for m in (fixed, traced))
    assert float(got.pop("span")) == 0
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert error(got, want) < 2e-5


def test_one_program_serves_all_windows():
    _, traced = pair(3)
    graph, state = nnx.split(traced)
    x, context = inputs()
    count = 0

    @jax.jit
    def run(state, span):
        nonlocal count
        count += 1
        return with_span(nnx.merge(graph, state), span)(x, context)

    outs = [run(state, np.float32(w)) for w in (0, 3, TIME)]
    assert count == 1 and float(jnp.abs(outs[0] - outs[1]).max()) > 1e-3


def test_a_narrower_window_is_its_own_and_there_is_no_decoding_form():
    fixed, traced = pair(9)
    x, context = inputs()
    real = (IDS != 0)[..., None]
    want, got = (np.where(real, m.narrowed(4)(x, context), 0) for m in (fixed, traced))
    assert error(got, want) < 2e-6 and float(traced.span[...]) == 9
    with pytest.raises(ValueError, match="no decoding state: set NHAConfig.window"):
        traced.init_state(1, 4, jnp.float32)
    with pytest.raises(ValueError, match="no decoding form"):
        traced.extend(x, context, None)
