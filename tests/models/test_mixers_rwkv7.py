"""RWKV-7's two halves of a layer, against the paper's equations written anew, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from hybridlm.models.accounting import layer_table
from hybridlm.models.feedforward import read_feedforward
from hybridlm.models.mixers import LayerSpec, SequenceContext, read_mixer
from hybridlm.models.params import Model

TIME, WIDTH = 19, 32


def drawn(config, index=0, depth=3, seed=0):
    """(a module with all parameters drawn, its parameters as float64)."""
    module = config.build(LayerSpec(WIDTH, 1e-6, 0.5, index, depth), rngs=nnx.Rngs(seed))
    rng, state = np.random.default_rng([seed, index]), nnx.state(module)
    nnx.update(module, jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape), state))
    params = nnx.to_pure_dict(nnx.state(module))
    return module, jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def loramlp(p, x, act=lambda x: x):
    return act(x @ p["down"]) @ p["up"] + p.get("base", 0)


def time_mixing(p, head_dim, x, first_value):
    """(outputs, this layer's value before the residual); arXiv 2503.14456, section 4, a row a token.

    The state of a head is (values, keys) as in the paper: wkv <- wkv (diag(w) - c^T (a * c)) + v^T k.
    """
    y, values, before = np.zeros_like(x), np.zeros_like(x), np.zeros(WIDTH)
    heads = [slice(i, i + head_dim) for i in range(0, WIDTH, head_dim)]
    wkv = {h.start: np.zeros((head_dim, head_dim)) for h in heads}
    for t in range(len(x)):
        x_r, x_w, x_k, x_v, x_a, x_g = (x[t] + p["mix"][n] * (before - x[t]) for n in "rwkvag")
        before = x[t]
        r, k, v = (row @ p[n]["kernel"] for row, n in ((x_r, "r"), (x_k, "k"), (x_v, "v")))
        values[t] = v
        if first_value is not None:
            share = sigmoid(loramlp(p["value_share"], x_v))
            v = (1 - share) * v + share * first_value[t]
        a = sigmoid(loramlp(p["rate"], x_a))
        w = np.exp(-np.exp(-0.5) * sigmoid(loramlp(p["decay"], x_w, np.tanh)))
        g = loramlp(p["gate"], x_g, sigmoid)
        removal, k = k * p["removal_key"], k * (1 + (a - 1) * p["key_rate"])
        out = np.zeros(WIDTH)
        for h in heads:
            c = removal[h] / np.linalg.norm(removal[h])
            s = wkv[h.start] @ (np.diag(w[h]) - np.outer(c, a[h] * c)) + np.outer(v[h], k[h])
            wkv[h.start] = s
            o = s @ r[h]
            normed = (o - o.mean()) / np.sqrt(o.var() + 1e-5 * head_dim)
            normed = normed * p["norm"]["scale"][h] + p["norm"]["bias"][h]
            out[h] = normed + np.sum(r[h] * k[h] * p["bonus"][h]) * v[h]
        y[t] = (out * g) @ p["out"]["kernel"]
    return y, values


def inputs(seed=1):
    return np.random.default_rng(seed).standard_normal((TIME, WIDTH))


def assert_near(got, want):
    np.testing.assert_allclose(np.asarray(got)[0], want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("name", ["rwkv7", "rwkv7_alone"])
def test_the_layer_equals_the_published_equations(name):
    config = read_mixer(small.MIXERS[name], "m")
    module, params = drawn(config)
    x_TD = inputs()
    context = SequenceContext.of(jnp.ones((1, TIME), jnp.int32))
    got = jax.jit(lambda x: module(x, context))(jnp.asarray(x_TD[None], jnp.float32))
    assert_near(got, time_mixing(params, config.head_dim, x_TD, None)[0])


def test_values_are_mixed_with_those_of_the_lowest_rwkv7_layer():
    """Three layers of which attention is the lowest, on inputs of their own."""
    config = read_mixer(small.MIXERS["rwkv7"], "m")
    context = SequenceContext.of(jnp.ones((1, TIME), jnp.int32))
    shapes = config.cross_layer(WIDTH, 3)
    arrays = {n: jnp.zeros((1, TIME, *shape)) for n, shape in shapes.items()}
    first = None
    for index in (1, 2):
        module, params = drawn(config, index)
        x_TD = inputs(index)

        @jax.jit
        def run(x_BTD, arrays, module=module, index=index):
            here = context._replace(cross_layer=dict(arrays), layer=index)
            return module(x_BTD, here), here.cross_layer

        got, arrays = run(jnp.asarray(x_TD[None], jnp.float32), arrays)
        want, values = time_mixing(params, config.head_dim, x_TD, first)
        first = values if first is None else first
        assert_near(got, want)


def test_the_feedforward_equals_its_equation():
    module, params = drawn(read_feedforward(dict(kind="channel_mix", hidden=24), "mlp"))
    x_TD = inputs()
    ids = np.repeat([[1, 2]], [7, TIME - 7], axis=1)
    got = module(jnp.asarray(x_TD[None], jnp.float32), small.context(ids))
    before = np.pad(x_TD, ((1, 0), (0, 0)))[:-1]
    before[[0, 7]] = 0  # no token of another document
    mixed = x_TD + params["mix"] * (before - x_TD)
    assert_near(got, np.maximum(mixed @ params["up"]["kernel"], 0) ** 2 @ params["down"]["kernel"])


def test_initial_values_are_published():
    """Of a layer in the middle of 5, at the first channel, the last, and in the middle of a head."""
    spec = LayerSpec(64, 1e-6, 0.5, 2, 5)
    module = read_mixer(dict(kind="rwkv7", head_dim=16), "m").build(spec, rngs=nnx.Rngs(0))
    p = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module)))
    np.testing.assert_allclose(p["mix"]["k"][[0, 32]], [1, 1 - 0.5 ** (0.7 * 0.6)], rtol=1e-6)
    np.testing.assert_allclose(p["decay"]["base"][[0, 63]], [-6 + 0.5 - 2.5, 0.5 + 2.5], rtol=1e-5)
    np.testing.assert_allclose(p["rate"]["base"][[0, 63]], [-0.69, 0.31], rtol=1e-5)
    np.testing.assert_allclose(p["value_share"]["base"][[0, 63]], [0.93, 0.53], rtol=1e-5)
    np.testing.assert_allclose(p["removal_key"][[0, 63]], [0.76, 0.66], rtol=1e-5)
    assert np.all(p["key_rate"] == np.float32(1.02)) and np.all(p["bonus"] == np.float32(-0.04))
    assert not np.any(p["out"]["kernel"]) and not np.any(p["decay"]["down"])
    assert 0.9 * 0.05 / 8 < np.abs(p["k"]["kernel"]).max() <= 0.05 / 8
    up = p["decay"]["up"]
    np.testing.assert_allclose(up @ up.T, 0.01 * np.eye(len(up)), atol=1e-6)
    assert "base" not in p["gate"]


@pytest.mark.parametrize("head_dim, value_residual", [(8, True), (16, False)])
def test_flops_are_those_of_the_matrices(head_dim, value_residual):
    settings = dict(kind="rwkv7", head_dim=head_dim, value_residual=value_residual)
    config = read_mixer(settings, "m")
    module = config.build(LayerSpec(32, 1e-6, 1.0), rngs=nnx.Rngs(0))
    matrices = sum(x.size for x in jax.tree.leaves(nnx.state(module)) if x.ndim == 2)
    assert config.flops_per_token(32, 99) == 2 * matrices + 4 * 2 * 32 * head_dim


MODEL = dict(
    pattern="rwkv7",
    prefix="full",
    depth=4,
    mixers={n: small.MIXERS[n] for n in ("rwkv7", "full")},
    mlp=dict(kind="channel_mix", hidden=48),
)


def test_a_model_counts_the_states_of_its_feedforwards():
    with_shift, without = (
        layer_table(Model.of(small.model_config(**MODEL | dict(mlp=mlp))), 64)
        for mlp in (MODEL["mlp"], dict(hidden=48))
    )
    for row, other in zip(with_shift[1:-1], without[1:-1], strict=True):
        assert [n - m for n, m in zip(row.state_bytes, other.state_bytes)] == [2 * 32] * len(
            row.state_bytes
        )


@pytest.mark.slow
def test_decoding_and_packing_are_exact_across_layers():
    """With the value residual through the scan, and with the states of the feed-forwards."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        model, params = small.make(small.model_config(**MODEL), dtype=jnp.float64)
        tokens = jnp.asarray(rng.integers(0, 40, (1, 16)), jnp.int32)
        ids = np.repeat([[1, 2]], [6, 10], axis=1)

        @jax.jit
        def all_ways(params):
            module = model.bind(params)

            def whole(tokens, ids):
                hidden = module.hidden(tokens, small.context(ids), dtype=jnp.float64)
                return module.logits(hidden)

            state, parts = module.init_decode(1, 16, jnp.float64), []
            context = small.context(ids)
            for piece in (slice(0, 4), slice(4, 9), slice(9, 10), slice(10, 16)):
                here = SequenceContext(*(x[:, piece] for x in context[:2]))
                logits, state = module.extend(tokens[:, piece], here, state, dtype=jnp.float64)
                parts.append(logits)
            alone = whole(tokens[:, 6:], np.ones((1, 10), int))
            return whole(tokens, ids), jnp.concatenate(parts, axis=1), alone

        packed, decoded, alone = all_ways(params)
    np.testing.assert_allclose(decoded, packed, atol=1e-9)
    np.testing.assert_allclose(packed[:, 6:], alone, atol=1e-9)
