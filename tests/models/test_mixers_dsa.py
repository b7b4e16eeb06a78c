"""Equalities, costs and the loss of sparse latent attention; test_mixer_laws.py tests the laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from hybridlm.errors import ConfigError
from hybridlm.models.mixers import LayerSpec, SequenceContext, read_mixer
from hybridlm.models.mixers.spans import mean_keys

WIDTH = 32
SPARSE = ("index_heads", "index_dim", "top_k")


def build(name, **changes):
    config = read_mixer(small.MIXERS[name] | changes, "m")
    return config, config.build(LayerSpec(WIDTH, 1e-6, 1.0), rngs=nnx.Rngs(0))


def drawn(time, seed=0):
    x = np.random.default_rng(seed).standard_normal((1, time, WIDTH))
    return jnp.asarray(x, jnp.float32), small.context(np.ones((1, time)))


@pytest.mark.parametrize("name", ["dsa", "dsa_nope"])
def test_a_top_k_of_the_whole_document_is_latent_attention(name):
    _, sparse = build(name, top_k=20)
    settings = {k: v for k, v in small.MIXERS[name].items() if k not in SPARSE} | {"kind": "mla"}
    dense = read_mixer(settings, "m").build(LayerSpec(WIDTH, 1e-6, 1.0), rngs=nnx.Rngs(1))
    shared = nnx.to_pure_dict(nnx.state(sparse))
    shared.pop("indexer")
    state = nnx.state(dense)
    nnx.replace_by_pure_dict(state, shared)
    nnx.update(dense, state)
    x, context = drawn(20)
    np.testing.assert_allclose(sparse(x, context), dense(x, context), atol=2e-6)


def test_rows_of_attention_are_those_of_the_chosen_tokens():
    config, mixer = build("dsa")
    x, context = drawn(17)
    rows = mixer.attention_rows(x, context, jnp.asarray([[0, 4, 16]]))
    seen = np.sum(np.asarray(rows.visible_BHQT), axis=-1)
    assert np.all(seen == [[1, config.top_k, config.top_k]])
    np.testing.assert_allclose(np.sum(rows.probs_BHQT, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["dsa", "dsa_nope"])
def test_flops_are_those_of_the_matrices_scores_and_chosen_keys(name):
    config, mixer = build(name)
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(mixer)))
    matrices = sum(2 * x.size for path, x in leaves if path[-1].key == "kernel")
    sizes = config.qk_nope + config.qk_rope + config.value_dim
    keys = 2 * config.heads * sizes * mean_keys(33, config.top_k)
    scores = 2 * config.index_heads * (config.index_dim + 1) * mean_keys(33, None)
    assert config.flops_per_token(WIDTH, 33) == pytest.approx(matrices + keys + scores)


def test_the_cache_is_the_latents_and_the_indexers_key():
    """DeepSeek-V3.2: 576 and 128 elements of a token."""
    config = read_mixer(dict(kind="dsa", heads=128), "m")
    assert config.state_bytes(7168, 1000) == 1000 * (576 + 128) * 2


def test_the_key_of_a_pool_is_a_weighed_sum_of_its_tokens_keys():
    """Channel by channel, in numpy; the indexer has no key at other tokens."""
    config, mixer = build("dsa_pool")
    x, context = drawn(11)
    pool, size = mixer.indexer.pool, config.pool
    places = np.random.default_rng(3).standard_normal((size, config.index_dim))
    pool.places[...] = jnp.asarray(places, jnp.float32)
    keys, _ = pool(x, k := mixer.indexer.k(x), context, ())
    gates = np.asarray(pool.gate(x))
    for end in range(11):
        if end % size != size - 1:
            assert not np.any(keys[0, end])
            continue
        tokens = slice(end - size + 1, end + 1)
        weights = np.exp(gates[0, tokens] + places)
        weights /= weights.sum(0, keepdims=True)
        wanted = (weights * np.asarray(k[0, tokens])).sum(0)
        np.testing.assert_allclose(keys[0, end], wanted, rtol=1e-4, atol=1e-6)


def test_a_layer_uses_the_indexer_of_the_layer_below():
    """Decoding is exact, the indexer's keys are cached once, and both layers' losses train it."""
    mixers = {
        "own": small.MIXERS["dsa_pool"] | dict(index_out="i"),
        "other": small.MIXERS["dsa_pool"] | dict(index_in="i", heads=3),
        "rec": small.MIXERS["rec"],
    }
    with jax.enable_x64(True):
        settings = dict(mixers=mixers, mlp=dict(hidden=8))
        model, params = small.make(
            small.model_config("own other", depth=3, **settings), dtype=jnp.float64
        )
        tokens = np.random.default_rng(4).integers(0, 40, (1, 13)).astype(np.int32)
        context = small.context([[1] * 4 + [2] * 9])
        expected = jax.jit(lambda p: model.bind(p)(tokens, context))(params)
        extend = jax.jit(lambda p, *rest: model.bind(p).extend(*rest, dtype=jnp.float64))
        state, found, start = model.bind(params).init_decode(1, 13, jnp.float64), [], 0
        for n in (5, 1, 1, 5, 1):
            piece = SequenceContext(*(x[:, start : start + n] for x in context[:2]))
            made, state = extend(params, tokens[:, start : start + n], piece, state)
            found.append(made)
            start += n
    np.testing.assert_allclose(np.concatenate(found, 1), expected, rtol=2e-5, atol=2e-5)
    own, other = (model.config.mixers[name] for name in ("own", "other"))
    latents = 50 * (own.kv_rank + own.qk_rope) * 2
    assert other.state_bytes(WIDTH, 50) == latents
    assert own.state_bytes(WIDTH, 50) == latents + (50 + 2 * own.pool) * own.index_dim * 2


def test_the_loss_trains_the_indexer_and_nothing_else():
    config, mixer = build("dsa", index_loss=0.5)
    graphdef, state = nnx.split(mixer)
    x, _ = drawn(24)
    context = small.context([[1] * 9 + [2] * 11 + [0] * 4])

    def loss(state, x):
        return nnx.merge(graphdef, state).with_loss(x, context)[1]

    value, (by_state, by_x) = jax.value_and_grad(loss, (0, 1))(state, x)
    moved = {
        jax.tree_util.keystr(path, simple=True, separator="/").split("/")[0]
        for path, g in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(by_state))
        if np.any(g)
    }
    assert config.has_loss and value > 0
    assert moved == {"indexer"} and not np.any(by_x)
    assert not build("dsa", index_loss=0.0)[0].has_loss


def test_bad_settings_are_refused():
    for change, sentence in (
        (dict(index_dim=3), "index_dim is 3 and below qk_rope 4"),
        (dict(q_rank=None), "q_rank"),
        (dict(top_k=0), "top_k"),
        (dict(qk_rope=3), "rotates 3 of 3 dimensions"),
        (dict(pool=2), "pool is 2: it must divide top_k, 5"),
        (dict(top_k=6, pool=2), "index_loss is not defined for pools"),
        (dict(index_in="a", index_out="b"), "index_in goes without index_out"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            build("dsa", **change)
