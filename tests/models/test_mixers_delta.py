"""DeltaNet, Gated DeltaNet 1 and 2, Kimi Delta Attention: initialisation, cost, equations, errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from hybridlm.errors import ConfigError
from hybridlm.models.mixers import LayerSpec, SequenceContext, read_mixer

DELTA = ("deltanet", "gdn", "gdn_grouped", "kda", "kda_bounded", "gdn2", "gdn2_grouped")
DELTA += ("product", "product_grouped")


def build(width=32, seed=0, **settings):
    config = read_mixer(settings, "m")
    config.check_width(width)
    return config.build(LayerSpec(width, 1e-6, 0.5), rngs=nnx.Rngs(seed))


def softplus(x):
    return np.logaddexp(0, np.asarray(x, np.float64))


@pytest.mark.parametrize(
    "kind, lowest", [("gdn", 0.01), ("kda", 1.0), ("gdn2", 1.0), ("delta_product", 0.01)]
)
def test_decays_start_as_published(kind, lowest):
    """A uniform up to 16, time steps log-uniform between 0.001 and 0.1."""
    decay = build(kind=kind, heads=2048, head_dim=1).decay
    a, dt = np.exp(np.asarray(decay.a_log[...], np.float64)), softplus(decay.dt_bias[...])
    assert lowest - 1e-4 <= a.min() < lowest + 0.1 and 15.9 < a.max() <= 16 + 1e-4
    assert abs(a.mean() - (lowest + 16) / 2) < 0.4
    assert 0.99e-3 <= dt.min() < 1.1e-3 and 0.09 < dt.max() <= 0.1001
    assert abs(np.log(dt).mean() - np.log(1e-2)) < 0.1


def test_bounded_decay_starts_at_a_1_and_keeps_its_bound():
    decay = build(kind="kda", heads=2, lower_bound=-5.0).decay
    assert not np.any(decay.a_log[...])
    log_a = np.asarray(decay(100 * jax.random.normal(jax.random.key(0), (1, 50, 32))))
    assert -5 <= log_a.min() < -4.9 and log_a.max() <= 0


@pytest.mark.parametrize("kind", ["deltanet", "gdn", "kda", "gdn2", "delta_product"])
def test_outputs_start_small_and_norms_at_1(kind):
    mixer = build(kind=kind, heads=4, width=64)
    out = mixer.out.kernel[...]
    assert abs(float(jnp.std(out)) * out.shape[0] ** 0.5 - 0.5) < 0.03
    scales = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(mixer))
        if "scale" in jax.tree_util.keystr(path)
    ]
    assert len(scales) == 1 and np.all(np.asarray(scales[0]) == 1)


@pytest.mark.parametrize("name", DELTA)
def test_flops_are_those_of_the_matrices(name):
    """2 per kernel entry and token, and products with S: two for each update and one to read."""
    config = read_mixer(small.MIXERS[name], "m")
    mixer = config.build(LayerSpec(32, 1e-6, 1.0), rngs=nnx.Rngs(0))
    kernels = sum(
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(mixer))
        if "kernel" in jax.tree_util.keystr(path)
    )
    sizes = mixer.sizes
    state = sizes.value_heads * sizes.key_size * sizes.value_size
    products = 2 * config.updates_per_token() + 1
    assert config.flops_per_token(32, 99) == 2 * kernels + 2 * products * state


def test_gated_deltanet_has_six_width_squared_parameters():
    """The published sizes: keys of 3/4 of the width, values of twice that."""
    mixer = build(kind="gdn", heads=4, width=256)
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(mixer)))
    assert 6 <= count / 256**2 < 6.15


def forward_by_hand(mixer, x_TD):
    """The layer of the papers in numpy, token by token, from the module's own parameters."""
    state = nnx.to_pure_dict(nnx.state(mixer))
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state)
    sizes, config = mixer.sizes, mixer.config

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def low_rank(gate):
        return x_TD @ gate["down"]["kernel"] @ gate["up"]["kernel"] + gate["up"].get("bias", 0)

    def convolved(name, size):
        y = x_TD @ p[name]["kernel"]
        padded = np.pad(y, ((config.conv_width - 1, 0), (0, 0)))
        taps = p[f"{name}_conv"]["kernel"][::-1]
        y = sum(padded[i : i + len(y)] * tap for i, tap in enumerate(taps))
        return (y * sigmoid(y)).reshape(len(y), -1, size)

    q, k, v = convolved("q", sizes.key_size), convolved("k", sizes.key_size), None
    v = convolved("v", sizes.value_size)
    q, k = (x / np.sqrt(np.sum(x**2, -1, keepdims=True) + 1e-6) for x in (q, k))
    strongest = 2 if config.negative_eigenvalues else 1
    if config.kind_name == "gdn2":
        erase = k * strongest * sigmoid(x_TD @ p["erase"]["kernel"]).reshape(k.shape)
        v = v * sigmoid(x_TD @ p["write"]["kernel"]).reshape(v.shape)
        beta = np.ones(v.shape[:2])
    else:
        beta, erase = strongest * sigmoid(x_TD @ p["beta"]["kernel"]), k
    updates = config.updates_per_token()
    if not getattr(config, "decay", config.kind_name != "deltanet"):
        log_a = np.zeros((len(x_TD), sizes.value_heads, 1))
    elif config.kind_name in ("gdn", "delta_product"):
        dt = x_TD @ p["decay"]["proj"]["kernel"] + p["decay"]["dt_bias"]
        log_a = (-np.exp(p["decay"]["a_log"]) * softplus(dt))[..., None]
    else:
        shape = len(x_TD), sizes.heads, sizes.key_size
        dt = low_rank(p["decay"]["proj"]).reshape(shape) + p["decay"]["dt_bias"]
        rate = np.exp(p["decay"]["a_log"])[:, None]
        bound = getattr(config, "lower_bound", None)
        log_a = -rate * softplus(dt) if bound is None else bound * sigmoid(rate * dt)
        log_a = np.repeat(log_a, sizes.value_heads // sizes.heads, axis=1)
    o = np.zeros((len(x_TD), sizes.value_heads, sizes.value_size))
    for h in range(sizes.value_heads):
        group = h // (sizes.value_heads // sizes.heads)
        s = np.zeros((sizes.key_size, sizes.value_size))
        for t in range(len(x_TD)):
            s = np.exp(log_a[t, h])[:, None] * s
            for n in range(updates):  # those of a head side by side
                key, value = group * updates + n, h * updates + n
                s += beta[t, value] * np.outer(k[t, key], v[t, value] - erase[t, key] @ s)
            o[t, h] = q[t, group] @ s / np.sqrt(sizes.key_size)
    norm = p["output"]["norm"]
    scale = norm["scale"] if "scale" in norm else norm["norm"]["scale"]
    o = o / np.sqrt(np.mean(o**2, -1, keepdims=True) + 1e-6) * scale
    if config.kind_name in ("gdn", "delta_product"):
        gate = (x_TD @ p["output"]["gate"]["kernel"]).reshape(o.shape)
        o = o * gate * sigmoid(gate)
    elif config.kind_name in ("kda", "gdn2"):
        o = o * sigmoid(low_rank(p["output"]["gate"]).reshape(o.shape))
    return o.reshape(len(x_TD), -1) @ p["out"]["kernel"]


@pytest.mark.parametrize("name", DELTA)
def test_the_layer_equals_the_published_equations(name):
    mixer = build(**small.MIXERS[name])
    x_TD = np.random.default_rng(0).standard_normal((20, 32))
    context = small.context(np.ones((1, 20)))
    got = jax.jit(lambda x: mixer(x, context))(jnp.asarray(x_TD[None], jnp.float32))[0]
    want = forward_by_hand(mixer, x_TD)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def instructions(**settings):
    """Of the gradient of a layer over 8 rows of 256 tokens, lowered and not compiled."""
    graphdef, params = nnx.split(build(width=128, **settings))

    def loss(params, x_BTD, ids_BT):
        return jnp.sum(nnx.merge(graphdef, params)(x_BTD, SequenceContext.of(ids_BT)))

    arrays = params, jnp.zeros((8, 256, 128)), jnp.ones((8, 256), jnp.int32)
    text = jax.jit(jax.grad(loss, (0, 1))).lower(*arrays).as_text()
    return len(re.findall(r"^ +%\S+ = ", text, re.MULTILINE))


def test_a_gated_deltanet_layer_has_twice_the_instructions_of_attention():
    """XLA makes kernels of them, one after another, so that many take long to compile: they were 2.9
    times attention's when a step took 2.1 times as long to compile, and are 2.1 times."""
    attention = instructions(kind="attention", heads=4, kv_heads=2, window=64, qk_norm=True)
    gdn = instructions(kind="gdn", heads=4, head_dim=32, value_dim=32)
    assert gdn <= 2.4 * attention, (gdn, attention)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(kind="deltanet", heads=0), "heads must be at least 1"),
        (dict(kind="gdn", heads=2, value_heads=3), "must be a multiple of heads 2"),
        (dict(kind="gdn", heads=2, conv_width=9), "conv_width must lie in 1 to 8"),
        (dict(kind="gdn", heads=2, value_dim=0), "value_dim must be at least 1"),
        (dict(kind="gdn2", heads=2, value_heads=3), "must be a multiple of heads 2"),
        (dict(kind="kda", heads=2, lower_bound=1.0), "lower_bound must be negative"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ConfigError, match=message):
        read_mixer(settings, "m")
