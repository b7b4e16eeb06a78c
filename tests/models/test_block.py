"""Blocks, norms and feed-forwards compute what the config says, also without one half."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from hybridlm.models.accounting import layer_table, train_flops_per_token
from hybridlm.models.feedforward import KINDS, read_feedforward
from hybridlm.models.mixers import LayerSpec, SequenceContext
from hybridlm.models.norms import NORMS
from hybridlm.models.params import Model
from hybridlm.settings.reader import Invalid

SPEC = LayerSpec(width=16, norm_eps=1e-6, out_scale=0.5)
FEEDFORWARDS = [
    dict(kind="swiglu", hidden=24),
    dict(kind="geglu", hidden=24),
    dict(hidden=24),
    *(
        dict(kind=kind, hidden=24, activation=activation, bias=bias)
        for kind in ("gated", "plain")
        for activation in ("silu", "gelu", "gelu_tanh", "relu", "relu2")
        for bias in (False, True)
    ),
]
# As in DeepSeek, the first layers have another feed-forward; as in Nemotron-H, each layer is one
# half; as in Mamba, no layer has a feed-forward.
PATTERNS = {
    "first_dense": dict(
        pattern="full", prefix="full+dense*2", depth=4, feedforwards=dict(dense=dict(hidden=80))
    ),
    "halves": dict(
        pattern="ssd+none none+relu full+none none+relu",
        depth=8,
        feedforwards=dict(relu=dict(kind="plain", hidden=40, activation="relu2")),
    ),
    "mamba": dict(pattern="ssd", depth=3, mlp=None),
}


def config_of(name, **settings):
    mixers = {"full": small.MIXERS["full"], "ssd": small.MIXERS["ssd"]}
    return small.model_config(**PATTERNS[name], mixers=mixers, **settings)


@pytest.mark.parametrize("settings", FEEDFORWARDS, ids=str)
def test_a_feedforward_computes_its_equation_and_counts_its_cost(settings):
    from flax import nnx

    config = read_feedforward(settings, "mlp")
    module = config.build(SPEC, rngs=nnx.Rngs(0))
    sizes = [x.size for x in jax.tree.leaves(nnx.state(module))]
    assert sum(sizes) == config.parameters(16) == config.active_parameters(16)
    assert config.flops_per_token(16) == 2 * sum(s for s in sizes if s > 24)
    x = jax.random.normal(jax.random.key(0), (2, 3, 16))
    act = {
        "silu": lambda x: x / (1 + np.exp(-x)),
        "gelu": lambda x: jax.nn.gelu(x, approximate=False),
        "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
        "relu": lambda x: np.maximum(x, 0),
        "relu2": lambda x: np.maximum(x, 0) ** 2,
    }
    name = getattr(config, "activation", {"geglu": "gelu_tanh"}.get(config.kind_name, "silu"))
    up = module.up(x)
    hidden = act[name](module.gate(x)) * up if hasattr(module, "gate") else act[name](up)
    context = SequenceContext.of(jnp.ones((2, 3), jnp.int32))
    np.testing.assert_allclose(module(x, context), module.down(hidden), rtol=1e-4, atol=1e-5)


def test_every_kind_of_feedforward_is_tested():
    tested = {read_feedforward(s, "mlp").kind_name for s in FEEDFORWARDS}
    # The others in test_feedforward_moe.py, test_shared_keys.py and test_mixers_rwkv7.py.
    assert tested | {"moe", "dense_beside_moe", "channel_mix"} == set(KINDS)


@pytest.mark.parametrize("name", NORMS)
def test_a_norm_computes_its_equation(name):
    from flax import nnx

    rng = np.random.default_rng(0)
    norm = NORMS[name](6, 1e-5)
    state = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape)), nnx.state(norm))
    nnx.update(norm, state)
    x = rng.standard_normal((2, 3, 6)) + 1
    scale = np.asarray(norm.scale[...]) + (name == "rmsnorm_unit_offset")
    if name.startswith("rms"):
        expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale
    else:
        expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        expected = expected * scale + (np.asarray(norm.bias[...]) if name == "layernorm" else 0)
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5)
    assert name != "layernorm_no_bias" or norm.bias is None


@pytest.mark.parametrize("block", ["prenorm", "postnorm", "sandwich", "parallel"])
def test_norms_and_scales_are_where_the_block_puts_them(block):
    model = Model.of(small.model_config("full", block=block, norm="layernorm", residual_scale=0.3))
    params = jax.jit(model.init)(jax.random.key(0))
    ((_, made),) = model.bind(params).blocks()
    x = jax.random.normal(jax.random.key(1), (2, 5, 32))
    context = SequenceContext.of(jnp.ones((2, 5), jnp.int32))

    def half(module, x):
        return module(x, context)

    if block == "parallel":
        normed = made.norm(x)
        expected = x + 0.3 * half(made.mixer, normed) + 0.3 * half(made.mlp, normed)
    else:
        before, after = block in ("prenorm", "sandwich"), block in ("postnorm", "sandwich")
        names = [n for n, there in (("norm", before), ("post_norm", after)) if there]
        expected = x
        for part in ("mixer", "mlp"):
            norms = {n: getattr(made, f"{part}_{n}") for n in names}
            y = half(getattr(made, part), norms["norm"](expected) if before else expected)
            expected = expected + 0.3 * (norms["post_norm"](y) if after else y)
    np.testing.assert_allclose(made(x, context), expected, rtol=1e-5, atol=1e-6)


def test_layers_join_the_residual_stream_as_their_mixer_says():
    joins = dict(norms="normed", mixer_keep=0.5, mixer_add=1.5, mlp_keep=3.0, mlp_add=0.7)
    blocks = dict(ssd=joins, full=dict(norms="postnorm"))
    mixers = {name: small.MIXERS[name] for name in ("full", "ssd", "rec")}
    config = small.model_config("rec full ssd", mixers=mixers, blocks=blocks, depth=3)
    model = Model.of(config)
    params = jax.jit(model.init)(jax.random.key(0))
    by_name = dict(zip(("rec", "full", "ssd"), (made for _, made in model.bind(params).blocks())))
    for name, norms in (("rec", {"mixer_norm", "mlp_norm"}), ("full", {"mixer_post_norm"})):
        assert norms <= {p.split("/")[0] for p in model.layer_shapes([*by_name].index(name))}
    made = by_name["ssd"]
    x = jax.random.normal(jax.random.key(1), (2, 5, 32))
    context = SequenceContext.of(jnp.ones((2, 5), jnp.int32))
    normed = made.mixer_norm(x)
    middle = made.mlp_norm(0.5 * normed + 1.5 * made.mixer(normed, context))
    expected = 3.0 * middle + 0.7 * made.mlp(middle, context)
    np.testing.assert_allclose(made(x, context), expected, rtol=1e-5, atol=1e-6)


def test_a_block_of_no_mixer_is_refused():
    with pytest.raises(Invalid, match="is of no mixer: it may be of full"):
        small.model_config("full", blocks=dict(gdn=dict(norms="postnorm")))


@pytest.mark.parametrize("name", PATTERNS)
def test_layers_follow_the_pattern(name):
    config = config_of(name)
    model = Model.of(config)
    for index, layer in enumerate(config.layout.layers):
        parts = {path.split("/")[0] for path in model.layer_shapes(index)}
        no_mixer, no_feed = layer.mixer == "none", layer.feedforward == "none" or name == "mamba"
        assert ("mixer" in parts) == ("mixer_norm" in parts) == (not no_mixer)
        assert ("mlp" in parts) == ("mlp_norm" in parts) == (not no_feed)
    widths = [
        shapes["mlp/down/kernel"][0] if "mlp/down/kernel" in shapes else None
        for shapes in map(model.layer_shapes, range(config.depth))
    ]
    expected = {"first_dense": [80, 80, 48, 48], "halves": [None, 40] * 4, "mamba": [None] * 3}
    assert widths == expected[name]
    rows = layer_table(model, 64)
    assert [row.name for row in rows[1:-1]] == [layer.label for layer in config.layout.layers]
    assert sum(row.parameters for row in rows) == model.count()
    other = Model.of(config_of(name, norm="layernorm", tie_embeddings=False))
    assert sum(row.parameters for row in layer_table(other, 64)) == other.count()
    assert train_flops_per_token(model, 64) == 3 * sum(row.flops_per_token for row in rows)


@pytest.mark.parametrize("name", PATTERNS)
def test_decoding_equals_the_forward_pass(name):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        model, params = small.make(config_of(name), dtype=jnp.float64)
        tokens = jnp.asarray(rng.integers(0, 40, (2, 12)), jnp.int32)
        context = small.context(small.random_segments(rng, 2, 12))

        @jax.jit
        def both(params):
            module = model.bind(params)
            whole = module.logits(module.hidden(tokens, context, dtype=jnp.float64))
            state, parts = module.init_decode(2, 12, jnp.float64), []
            for start, end in ((0, 7), (7, 8), (8, 12)):
                piece = context._replace(
                    segment_ids_BT=context.segment_ids_BT[:, start:end],
                    positions_BT=context.positions_BT[:, start:end],
                )
                logits, state = module.extend(tokens[:, start:end], piece, state, dtype=jnp.float64)
                parts.append(logits)
            return whole, jnp.concatenate(parts, axis=1)

        whole, split = both(params)
        real = (np.asarray(context.segment_ids_BT) != 0)[:, :, None]
        np.testing.assert_allclose(np.where(real, split, 0), np.where(real, whole, 0), atol=1e-9)


@pytest.mark.parametrize(
    "pattern, sentence",
    [
        ("ssd+none none+none", "a layer of nothing"),
        ("ssd+moe", "names feed-forward 'moe', not defined: did you mean 'more'"),
        ("ssd+", "has 'ssd\\+': write mixer names"),
    ],
)
def test_a_bad_pattern_is_refused(pattern, sentence):
    with pytest.raises(Invalid, match=sentence):
        small.model_config(
            pattern,
            depth=2,
            mixers={"ssd": small.MIXERS["ssd"]},
            feedforwards={"more": dict(hidden=8)},
        )


def test_a_mixer_may_not_be_called_none():
    with pytest.raises(Invalid, match="use another name"):
        small.model_config("none", depth=2, mixers={"none": small.MIXERS["ssd"]})
