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
from kernels_pallas import segments
from kernels_pallas.testing import assert_close, draw_segment_ids, normal

# Two updates a token: the chunked form's chunks of 64 updates hold 32 tokens.
TIME, WIDTH = 45, 32


def drawn(config, index=0, depth=3, seed=0):
    """(the module's graph, its parameters, all of them drawn near their initial values)."""
    module = config.build(LayerSpec(WIDTH, 1e-6, 0.5, index, depth), rngs=nnx.Rngs(seed))
    graphdef, state = nnx.split(module)
    rng = np.random.default_rng([seed, index])
    return graphdef, jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape), state)


def loramlp(p, x, act=lambda x: x):
    return act(x @ p["down"]) @ p["up"] + p.get("base", 0)


def time_mixing(p, head_dim, x_TD, starts_T, first_TD=None):
    """(outputs, this layer's values before the residual); arXiv 2503.14456, section 4, token by token.

    The state of a head is (values, keys) as in the paper: wkv <- wkv (diag(w) - c^T (a * c)) + v^T k.
    `first_TD` are the values of the lowest layer, None where there is none below.
    """
    sigmoid = jax.nn.sigmoid

    def by_head(x):
        return x.reshape(-1, head_dim)

    def token(carry, inputs):
        x, start, first = inputs
        wkv, before = (jnp.where(start, 0, y) for y in carry)
        x_r, x_w, x_k, x_v, x_a, x_g = (x + p["mix"][n] * (before - x) for n in "rwkvag")
        r, k, value = (row @ p[n]["kernel"] for row, n in ((x_r, "r"), (x_k, "k"), (x_v, "v")))
        v = value
        if first_TD is not None:
            share = sigmoid(loramlp(p["value_share"], x_v))
            v = (1 - share) * value + share * first
        a = sigmoid(loramlp(p["rate"], x_a))
        w = jnp.exp(-jnp.exp(-0.5) * sigmoid(loramlp(p["decay"], x_w, jnp.tanh)))
        g = loramlp(p["gate"], x_g, sigmoid)
        removal, k = by_head(k * p["removal_key"]), k * (1 + (a - 1) * p["key_rate"])
        r, k, v, a, w = map(by_head, (r, k, v, a, w))
        c = removal / jnp.sqrt(jnp.sum(removal**2, axis=1, keepdims=True))
        states = []
        for h in range(len(c)):
            transition = jnp.diag(w[h]) - jnp.outer(c[h], a[h] * c[h])
            states.append(wkv[h] @ transition + jnp.outer(v[h], k[h]))
        o = jnp.stack([s @ r_h for s, r_h in zip(states, r)])
        centred = o - jnp.mean(o, axis=1, keepdims=True)
        o = centred / jnp.sqrt(jnp.mean(centred**2, axis=1, keepdims=True) + 1e-5 * head_dim)
        bonus = jnp.sum(r * k * by_head(p["bonus"]), axis=1, keepdims=True) * v
        out = o.reshape(-1) * p["norm"]["scale"] + p["norm"]["bias"] + bonus.reshape(-1)
        return (jnp.stack(states), x), ((out * g) @ p["out"]["kernel"], value)

    empty = jnp.zeros((WIDTH // head_dim, head_dim, head_dim)), jnp.zeros(WIDTH)
    tokens = x_TD, starts_T, jnp.zeros_like(x_TD) if first_TD is None else first_TD
    return jax.lax.scan(token, empty, tokens)[1]


def channel_mixing(p, x_BTD, starts_BT):
    before_BTD = jnp.pad(x_BTD, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    before_BTD = jnp.where(starts_BT[..., None], 0, before_BTD)
    mixed_BTD = x_BTD + p["mix"] * (before_BTD - x_BTD)
    return jnp.maximum(mixed_BTD @ p["up"]["kernel"], 0) ** 2 @ p["down"]["kernel"]


def check_equal(what, rng, ids_BT, params, inputs, **forms):
    """Outputs at the tokens of documents, and gradients of every parameter and input, in float64."""
    is_real_BT1 = (ids_BT != 0)[..., None]
    cotangents = [normal(rng, x.shape, jnp.float64) for x in inputs]

    def results(form):
        def masked(params, inputs):
            return [jnp.where(is_real_BT1, y, 0) for y in form(params, inputs)]

        outputs, vjp = jax.vjp(masked, params, inputs)
        return outputs, vjp(cotangents)

    got, want = (jax.jit(results, static_argnums=0)(form) for form in forms.values())
    assert_close(f"{what}: {' = '.join(forms)}", got, want, 1e-9)


def documents(rng):
    """(segment ids with padding, where documents begin) of two rows."""
    ids_BT = draw_segment_ids(rng, 2, TIME)
    return ids_BT, segments.document_starts(ids_BT)


@pytest.mark.parametrize("name", ["rwkv7", pytest.param("rwkv7_alone", marks=pytest.mark.slow)])
def test_the_layer_is_the_paper(x64, name):
    rng = np.random.default_rng(1)
    config, (ids_BT, starts_BT) = read_mixer(small.MIXERS[name], "m"), documents(rng)
    graphdef, state = drawn(config)

    def ours(params, inputs):
        return [nnx.merge(graphdef, params)(inputs[0], small.context(ids_BT))]

    def papers(params, inputs):
        def row(x_TD, starts_T):
            return time_mixing(nnx.to_pure_dict(params), config.head_dim, x_TD, starts_T)[0]

        with jax.numpy_rank_promotion("allow"):
            return [jax.vmap(row)(inputs[0], starts_BT)]

    inputs = [normal(rng, (2, TIME, WIDTH), jnp.float64)]
    check_equal(name, rng, ids_BT, state, inputs, ours=ours, papers=papers)


def test_values_are_mixed_with_those_of_the_lowest_rwkv7_layer(x64):
    """Two layers above one of attention, on inputs of their own."""
    rng = np.random.default_rng(2)
    config, (ids_BT, starts_BT) = read_mixer(small.MIXERS["rwkv7"], "m"), documents(rng)
    graphdefs, states = zip(*(drawn(config, index) for index in (1, 2)))

    def ours(params, inputs):
        shapes = config.cross_layer(WIDTH, 3).items()
        arrays = {n: jnp.zeros((2, TIME, *shape)) for n, shape in shapes}
        outputs = []
        for index in (0, 1):
            here = small.context(ids_BT)._replace(cross_layer=dict(arrays), layer=index + 1)
            outputs.append(nnx.merge(graphdefs[index], params[index])(inputs[index], here))
            arrays = here.cross_layer
        return outputs

    def papers(params, inputs):
        low, high = map(nnx.to_pure_dict, params)

        def row(low_TD, high_TD, starts_T):
            y_TD, first_TD = time_mixing(low, config.head_dim, low_TD, starts_T)
            return y_TD, time_mixing(high, config.head_dim, high_TD, starts_T, first_TD)[0]

        with jax.numpy_rank_promotion("allow"):
            return list(jax.vmap(row)(*inputs, starts_BT))

    inputs = [normal(rng, (2, TIME, WIDTH), jnp.float64) for _ in states]
    check_equal("two layers", rng, ids_BT, states, inputs, ours=ours, papers=papers)


def test_the_feedforward_is_its_equation(x64):
    rng = np.random.default_rng(3)
    ids_BT, starts_BT = documents(rng)
    graphdef, state = drawn(read_feedforward(dict(kind="channel_mix", hidden=24), "mlp"))

    def ours(params, inputs):
        return [nnx.merge(graphdef, params)(inputs[0], small.context(ids_BT))]

    def papers(params, inputs):
        with jax.numpy_rank_promotion("allow"):
            return [channel_mixing(nnx.to_pure_dict(params), inputs[0], starts_BT)]

    inputs = [normal(rng, (2, TIME, WIDTH), jnp.float64)]
    check_equal("channel_mix", rng, ids_BT, state, inputs, ours=ours, papers=papers)


def assert_orthogonal(kernel, gain):
    """Rows of length `gain`, orthogonal to each other."""
    np.testing.assert_allclose(kernel @ kernel.T, gain**2 * np.eye(len(kernel)), atol=2e-6)


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
    for name, gain in dict(r=1.0, k=0.1, v=1.0).items():
        assert_orthogonal(p[name]["kernel"], gain)
    assert_orthogonal(p["decay"]["up"], 0.1)
    np.testing.assert_allclose(p["norm"]["scale"], np.full(64, 0.6**0.7), rtol=1e-6)
    assert not np.any(p["norm"]["bias"]) and "base" not in p["gate"]


def test_initial_values_of_the_feedforward_are_published():
    config = read_feedforward(dict(kind="channel_mix", hidden=96), "mlp")
    module = config.build(LayerSpec(WIDTH, 1e-6, 0.5, 2, 5), rngs=nnx.Rngs(0))
    p = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module)))
    np.testing.assert_allclose(p["mix"][[0, 16]], [1, 1 - 0.5 ** (0.6**4)], rtol=1e-6)
    assert_orthogonal(p["up"]["kernel"], 1.0)
    assert not np.any(p["down"]["kernel"])


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


def test_layers_of_a_scan_have_the_initial_values_of_their_place():
    """A prefix of attention and three RWKV-7 layers that one scan runs: the layer's number is traced."""
    model = Model.of(small.model_config(**MODEL))
    params = jax.jit(model.init)(jax.random.key(0))
    layers = [jax.tree.map(np.asarray, model.layer(params, index)) for index in (1, 2, 3)]
    for index, layer in enumerate(layers, start=1):
        scale = ((index + 1) / 4) ** 0.7
        np.testing.assert_allclose(layer["mixer"]["norm"]["scale"], np.full(32, scale), rtol=1e-6)
        assert_orthogonal(layer["mixer"]["r"]["kernel"], 1.0)
        assert_orthogonal(layer["mlp"]["up"]["kernel"], 1.0)
    assert not np.allclose(layers[0]["mixer"]["r"]["kernel"], layers[1]["mixer"]["r"]["kernel"])


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
