"""GLA, HGRN2 and Lightning: published decays, gates in log space, costs, bad settings."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from hybridlm.errors import ConfigError
from hybridlm.models.mixers import LayerSpec, read_mixer
from hybridlm.settings.reader import Invalid
from kernels_pallas import dispatch
from kernels_pallas.gated_linear import SUPPORT, gated_linear

NAMES = ["gla", "gla_odd", "hgrn2", "hgrn2_bound", "lightning", "hypenet"]


def build(width=32, **settings):
    config = read_mixer(settings, "m")
    config.check_width(width)
    return config.build(LayerSpec(width, 1e-6, 0.5), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("kind", ["gla", "mamba2", "mamba3"])
@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_the_kernel_covers_a_bfloat16_model(kind, platform):
    """Every call of gated linear attention, where its sizes are the kernel's."""
    sizes = dict(heads=2) if kind == "gla" else dict(head_dim=64, state_dim=64)
    mixer = build(width=256, kind=kind, **sizes)
    x = jax.ShapeDtypeStruct((1, 64, 256), jnp.bfloat16)
    ids = np.ones((1, 64), np.int32)
    with dispatch.kernels_for(platform), dispatch.auto_means("chunked"):
        with dispatch.choices() as choices:
            jax.eval_shape(lambda x: mixer(x, small.context(ids)), x)
    cases = [choice.case for choice in choices if choice.op == "gated_linear"]
    (kernel,) = (row for row in SUPPORT if row.limits and platform in row.limits["platform"])
    assert cases
    for case in cases:
        assert kernel.uncovered(dict(platform=platform, **case)) == []
        assert case["dtype"] == ("bfloat16" if kind == "gla" else "float32")


def test_lightning_decays_are_published():
    """MiniMax-01's slopes are (2^(-8/H))^h for h = 1..H; RetNet's decays 1 - 2^(-5-h)."""
    slopes = (2 ** (-8 / 12)) ** np.arange(1, 13)
    mixer = build(width=48, kind="lightning", heads=12, decay_scale=0.5)
    np.testing.assert_allclose(-mixer._log_decay(), 0.5 * slopes, rtol=1e-6)
    mixer = build(width=48, kind="lightning", heads=4, decay="retnet")
    np.testing.assert_allclose(
        jnp.exp(mixer._log_decay()), [31 / 32, 63 / 64, 127 / 128, 255 / 256]
    )


def test_gla_starts_near_one_sixteenth_power_of_a_half():
    """With bias 0 the decays start around 0.5^(1/16) = 0.958, and 0.25^(1/16) is rare."""
    mixer = build(width=512, kind="gla")
    assert not np.any(mixer.decay_bias[...])
    x = jax.random.normal(jax.random.key(0), (1, 50, 512))
    decay = np.exp(np.asarray(mixer._log_decay(x)))
    assert abs(np.median(decay) - 0.5 ** (1 / 16)) < 0.002
    assert np.mean(decay < 0.25 ** (1 / 16)) < 0.2
    assert np.all((0 < decay) & (decay < 1))


@pytest.mark.parametrize("bound", [0.0, 0.25, 0.9])
def test_hgrn2_key_and_forget_gate_sum_to_one(bound):
    mixer = build(kind="hgrn2", expand=8, lower_bound=bound)
    x = 30 * jax.random.normal(jax.random.key(1), (1, 40, 32))
    key, log_forget = (np.asarray(y, np.float64) for y in mixer._gate(x))
    np.testing.assert_allclose(key + np.exp(log_forget), 1, rtol=1e-6)
    assert np.exp(log_forget).min() >= bound * (1 - 1e-6)
    assert key.min() >= 0 and log_forget.max() <= 0
    gradients = jax.grad(lambda x: sum(jnp.sum(y) for y in mixer._gate(x)))(1e4 * x)
    assert bool(jnp.all(jnp.isfinite(gradients)))


def test_lightning_is_minimax_attention():
    """The whole mixer against its definition, as one sum over all earlier tokens."""
    mixer = build(kind="lightning", heads=4)
    x = jax.random.normal(jax.random.key(2), (2, 9, 32))
    ids, positions = jnp.ones((2, 9), jnp.int32), jnp.tile(jnp.arange(9), (2, 1))
    y = mixer(x, small.SequenceContext(ids, positions))
    q, k, v = (
        np.asarray(jax.nn.silu(layer(x))).reshape(2, 9, 4, 8)
        for layer in (mixer.q, mixer.k, mixer.v)
    )
    age = np.arange(9)[:, None] - np.arange(9)[None, :]
    rate = np.exp(-(2.0 ** -np.arange(2, 10, 2)))
    decay = np.where(age >= 0, rate[:, None, None] ** np.maximum(age, 0), 0)
    o = np.einsum("bihk,bjhk,hij,bjhv->bihv", q, k, decay, v).reshape(2, 9, 32)
    o /= np.sqrt(np.mean(o**2, -1, keepdims=True) + 1e-6)
    want = (o * np.asarray(jax.nn.sigmoid(mixer.gate(x)))) @ np.asarray(mixer.out.kernel[...])
    np.testing.assert_allclose(y, want, atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_flops_are_those_of_the_matrices_and_the_state(name):
    """Two per entry of every kernel, and four (update and read-out) per entry of the state."""
    config = read_mixer(small.MIXERS[name], name)
    mixer = config.build(LayerSpec(32, 1e-6, 1.0), rngs=nnx.Rngs(0))
    kernels = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(mixer)))
        if path[-1].key == "kernel"
    ]
    state = mixer.init_state(1, 10, jnp.float32).s_BHKV
    expected = 2 * sum(kernel.size for kernel in kernels) + 4 * state.size
    assert config.flops_per_token(32, 1000) == expected


def test_state_is_float32_under_bfloat16():
    mixer = build(kind="gla", heads=2)
    state = mixer.init_state(1, 5, jnp.bfloat16)
    assert state.s_BHKV.dtype == jnp.float32
    q = jnp.ones((1, 3, 2, 4), jnp.bfloat16)
    o, state = gated_linear(q, q, q, jnp.zeros(2, jnp.bfloat16), return_state=True)
    assert (o.dtype, state.s_BHKV.dtype) == (jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(kind="gla", heads=5), "expand_k.*5 heads do not divide"),
        (dict(kind="gla", gate_rank=0), "gate_rank.*at least 1"),
        (dict(kind="hgrn2"), "expand.*is 128 and does not divide model.width 32"),
        (dict(kind="hgrn2", expand=8, lower_bound=1.0), "lower_bound.*must lie in"),
        (dict(kind="lightning", heads=5), "heads.*does not divide model.width 32"),
        (dict(kind="lightning", heads=4, decay="half"), "decay"),
        (dict(kind="lightning", heads=32, rope={}), "rope.*even number"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises((Invalid, ConfigError)) as error:
        build(**settings)
    assert re.search(message, f"{getattr(error.value, 'field', '')} {error.value}")
