"""Equalities and costs of multi-head latent attention; test_mixer_laws.py tests the laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from hybridlm.errors import ConfigError
from hybridlm.models.mixers import LayerSpec, read_mixer
from hybridlm.models.mixers.spans import mean_keys

WIDTH = 32


def build(name, **changes):
    config = read_mixer(small.MIXERS[name] | changes, "m")
    return config, config.build(LayerSpec(WIDTH, 1e-6, 1.0), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", ["mla", "mla_nope", "mla_latent"])
def test_equals_the_equations_written_out(name):
    """Dense softmax per head, in float64 numpy, rotations included."""
    config, mixer = build(name)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(mixer)))
    time, rng = 7, np.random.default_rng(0)
    x = rng.standard_normal((time, WIDTH))

    def norm(y, scale):
        return y / np.sqrt(np.mean(y**2, -1, keepdims=True) + 1e-6) * scale

    def rope(y):
        if config.rope is None or not y.shape[-1]:
            return y
        half = y.shape[-1] // 2
        angle = np.arange(time)[:, None] * config.rope.theta ** (-np.arange(half) / half)
        z = (y[..., :half] + 1j * y[..., half:]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag], -1)

    q = x @ p["q"]["kernel"] if "kernel" in p["q"] else None
    if q is None:
        low = norm(x @ p["q"]["down"]["kernel"], p["q"]["norm"]["scale"])
        q = low @ p["q"]["up"]["kernel"]
    q = q.reshape(time, config.heads, -1)
    down = x @ p["kv_down"]["kernel"]
    latent = norm(down[:, : config.kv_rank], p["kv_norm"]["scale"])
    shared = rope(down[:, config.kv_rank :])
    up = (latent @ p["kv_up"]["kernel"]).reshape(time, config.heads, -1)
    outs = []
    for h in range(config.heads):
        k = np.concatenate([up[:, h, : config.qk_nope], shared], -1)
        q_h = np.concatenate([q[:, h, : config.qk_nope], rope(q[:, h, config.qk_nope :])], -1)
        logits = q_h @ k.T / np.sqrt(config.qk_nope + config.qk_rope)
        logits = np.where(np.tri(time, dtype=bool), logits, -np.inf)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        outs.append(weights / weights.sum(-1, keepdims=True) @ up[:, h, config.qk_nope :])
    want = np.concatenate(outs, -1) @ p["out"]["kernel"]
    got = mixer(jnp.asarray(x[None], jnp.float32), small.context(np.ones((1, time))))
    np.testing.assert_allclose(got[0], want, atol=2e-5)


@pytest.mark.parametrize("name", ["mla", "mla_nope", "mla_latent"])
def test_flops_are_those_of_the_matrices_and_keys(name):
    config, mixer = build(name)
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(mixer)))
    matrices = sum(2 * x.size for path, x in leaves if path[-1].key == "kernel")
    sizes = config.qk_nope + config.qk_rope + config.value_dim
    keys = 2 * config.heads * sizes * mean_keys(33, None)
    assert config.flops_per_token(WIDTH, 33) == pytest.approx(matrices + keys)


def test_the_cache_is_the_latent_alone():
    """DeepSeek-V3's 576 elements per token, for any number of heads."""
    config = read_mixer(dict(kind="mla", heads=128, q_rank=1536), "m")
    assert config.state_bytes(7168, 1000) == 1000 * 576 * 2


def test_bad_settings_are_refused():
    for change, sentence in (
        (dict(kv_rank=0), "m.kv_rank must be at least 1, not 0"),
        (dict(q_rank=0), "m.q_rank must be at least 1, or None, not 0"),
        (dict(qk_rope=-1), "m.qk_rope must be at least 0, not -1"),
        (dict(qk_rope=3), "m.rope rotates 3 of 3 dimensions: it needs an even number"),
        (dict(scale=0.0), "m.scale must be positive, or None, not 0.0"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            build("mla", **change)
