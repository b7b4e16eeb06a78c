"""Layers that attend to the keys and values of a layer below, and a vector of each token for each layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from hybridlm.errors import UserError
from hybridlm.models.accounting import (
    layer_table,
    state_bytes,
    train_flops_per_token,
    work_counter,
)
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.mixers.token_cache import TokenCache
from hybridlm.models.stack import by_layer
from hybridlm.settings.reader import Invalid
from hybridlm.train.step import REMAT

TIME = 22
PIECES = [8, 1, 1, 1, 8, 1, 1, 1]
LOCAL = dict(kind="attention", heads=4, kv_heads=2, head_dim=6, window=5, qk_norm=True)
FAR = dict(kind="attention", heads=2, kv_heads=1, value_dim=9, rope=dict(theta=99.0))
CHUNK = dict(LOCAL, window=None, chunk=6)
MIXERS = dict(
    local=dict(LOCAL, kv_out="a"),
    local_in=dict(LOCAL, heads=6, kv_in="a", window=3),
    far=dict(FAR, kv_out="b", v_norm=True, bias="qkv"),
    far_in=dict(FAR, kv_in="b", output_gate=True, sinks=True, rope=None),
    chunk=dict(CHUNK, kv_out="c"),
    chunk_in=dict(CHUNK, kv_in="c", soft_cap=9.0),
    rec=small.MIXERS["rec"],
)
#: Gemma 4's form, with readers in the scan; one layer in two, as in arXiv 2405.12981, in the scan.
FORMS = {
    "readers": dict(prefix="local far rec", pattern="local_in far_in", suffix="local_in", depth=8),
    "pairs": dict(prefix="", pattern="far rec far_in", suffix="chunk chunk_in", depth=8),
}
PER_LAYER = dict(size=5, rows=43)
BESIDE = dict(
    kind="dense_beside_moe",
    dense=dict(hidden=20),
    moe=dict(
        experts=4,
        top_k=2,
        hidden=7,
        activation="gelu_tanh",
        router=dict(normalize=True, input_norm=True, expert_scale=True),
    ),
)


def config(form, **settings):
    layout = FORMS[form]
    words = " ".join(str(x) for x in layout.values()).split()
    mixers = {name: mixer for name, mixer in MIXERS.items() if name in words}
    return small.model_config(**layout | dict(mixers=mixers) | settings)


#: "readers" also has a vector for each layer, and experts beside a dense feed-forward.
SETTINGS = {"readers": dict(per_layer=PER_LAYER, mlp=BESIDE, block="scaled_sandwich"), "pairs": {}}
by_form = pytest.mark.parametrize("form", FORMS)
first_form = pytest.mark.parametrize(
    "form", ["readers", pytest.param("pairs", marks=pytest.mark.slow)]
)


def documents(seed, batch=2, time=TIME):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 40, (batch, time)).astype(np.int32)
    return rng, tokens, small.random_segments(rng, batch, time)


@functools.cache
def made(form):
    with jax.enable_x64(True):
        return small.make(config(form, **SETTINGS[form]), dtype=jnp.float64)


@functools.cache
def value_and_grad(form):
    model, _ = made(form)

    @jax.jit
    def run(tokens, ids, positions, probe):
        def value(params):
            module = model.bind(params)
            context = SequenceContext(ids, positions)
            hidden = module.hidden(tokens, context, dtype=jnp.float64)
            return jnp.sum(module.logits(hidden) * probe)

        return jax.value_and_grad(value)(made(form)[1])

    return run


@first_form
def test_packed_equals_separate_with_gradients(form):
    rng, tokens, _ = documents(1, batch=1)
    cuts = [4, 5, 15]
    ids = 1 + np.searchsorted(cuts, np.arange(TIME), side="right")[None]
    probe = rng.standard_normal((1, TIME, 40))
    alone = [np.zeros((4, TIME, *x.shape[2:]), x.dtype) for x in (tokens, ids, probe)]
    for i, (start, end) in enumerate(zip([0, *cuts], [*cuts, TIME])):
        for row, x in zip(alone, (tokens, np.ones_like(ids), probe)):
            row[i, : end - start] = x[0, start:end]
    with jax.enable_x64(True):
        run = value_and_grad(form)
        packed = run(tokens, *small.context(ids)[:2], probe)
        separate = run(alone[0], *small.context(alone[1])[:2], alone[2])
    for a, b in zip(jax.tree.leaves(packed), jax.tree.leaves(separate), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9 * float(jnp.abs(b).max() + 1))


@by_form
def test_decoding_in_pieces_equals_the_forward_pass(form):
    _, tokens, ids = documents(2)
    assert TIME == sum(PIECES)
    with jax.enable_x64(True):
        model, params = made(form)
        context = small.context(ids)
        module = model.bind(params)
        expected = jax.jit(
            lambda p: model.bind(p).logits(model.bind(p).hidden(tokens, context, dtype=jnp.float64))
        )(params)
        extend = jax.jit(
            lambda params, tokens, context, state: model.bind(params).extend(
                tokens, context, state, dtype=jnp.float64
            )
        )
        state, found, start = module.init_decode(2, TIME, jnp.float64), [], 0
        for n in PIECES:
            piece = SequenceContext(*(x[:, start : start + n] for x in context[:2]))
            logits, state = extend(params, tokens[:, start : start + n], piece, state)
            found.append(logits)
            start += n
    real = (ids != 0)[:, :, None]
    found = np.concatenate(found, axis=1)
    np.testing.assert_allclose(np.where(real, found, 0), np.where(real, expected, 0), atol=1e-10)


@pytest.mark.slow
@by_form
def test_the_scan_and_remat_change_nothing(form):
    _, tokens, ids = documents(3)
    with jax.enable_x64(True):
        model, params = made(form)

        def gradient(**options):
            def loss(params):
                context = small.context(ids)
                hidden = model.bind(params).hidden(tokens, context, dtype=jnp.float64, **options)
                return jnp.sum(jnp.sin(hidden))

            return jax.jit(jax.grad(loss))(params)

        scanned = gradient()
        for other in (gradient(scan=False), gradient(remat=REMAT["full"])):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), scanned, other
            )


def test_a_layer_attends_to_the_keys_of_the_layer_below():
    """The mixer's output from its own queries and the lower layer's keys, in a loop over tokens."""
    mixers = dict(own=dict(LOCAL, kv_out="x", rope=None), other=dict(LOCAL, kv_in="x", rope=None))
    with jax.enable_x64(True):
        model, params = small.make(
            small.model_config("own other", mixers=mixers), dtype=jnp.float64
        )
        _, tokens, _ = documents(4, batch=1, time=9)
        context = SequenceContext.of(jnp.ones((1, 9), jnp.int32))
        read = {}

        def apply(block, index, x_BTD, context, carry, given):
            read[index] = (block.mixer, block.mixer_input(x_BTD, context))
            mixed = block.mixer(block.mixer_input(x_BTD, context), context)
            return block(x_BTD, context), carry, mixed

        module = model.bind(params)
        x_BTD = module.embed(tokens, jnp.float64)
        _, _, found = module.apply_layers(apply, x_BTD, context, unroll=True)
        mixed = by_layer(found, model.config.layout)[1]
        (below, low), (above, high) = read[0], read[1]
        k = below.k_norm(below.k(low).reshape(1, 9, 2, 6))[0]
        v = below.v(low).reshape(1, 9, 2, 6)[0]
        q = above.q_norm(above.q(high).reshape(1, 9, 4, 6))[0]
        assert above.k is None and above.v is None
        out = np.zeros((9, 4, 6))
        for t in range(9):
            first = max(0, t - 4)
            for h in range(4):
                logits = np.asarray(k[first : t + 1, h // 2] @ q[t, h]) * 6**-0.5
                weights = np.exp(logits - logits.max())
                out[t, h] = weights @ np.asarray(v[first : t + 1, h // 2]) / weights.sum()
        expected = out.reshape(9, 24) @ np.asarray(above.out.kernel[...])
    np.testing.assert_allclose(mixed[0], expected, rtol=1e-9, atol=1e-10)


def test_the_vectors_of_layers_are_made_as_stated():
    """Both embeddings, the gate and the norms, in numpy, for one layer of two."""
    with jax.enable_x64(True):
        plain = small.model_config("swa full", per_layer=dict(size=3, activation="silu"))
        model, params = small.make(plain, dtype=jnp.float64)
        module = model.bind(params)
        _, tokens, ids = documents(5, time=6)
        x = np.asarray(module.embed(tokens, jnp.float64))
        vectors = module.per_layer(tokens, jnp.asarray(x))
        outer, inner = params["per_layer"], model.layer(params, 1)["per_layer"]
        mapped = (x @ outer["projection"]["kernel"] * 32**-0.5).reshape(2, 6, 2, 3)
        size = np.sqrt(np.mean(mapped**2, axis=-1, keepdims=True) + 1e-6)
        mapped = mapped / size * np.asarray(outer["norm"]["scale"])[None, None, None]
        own = np.asarray(outer["embedding"])[tokens].reshape(2, 6, 2, 3) * 3**0.5
        expected = ((mapped + own) / 2**0.5)[:, :, 1]
        np.testing.assert_allclose(vectors[1], expected, rtol=1e-9)
        _, block = list(module.blocks())[1]
        gate = x @ np.asarray(inner["gate"]["kernel"])
        y = (gate / (1 + np.exp(-gate)) * expected) @ np.asarray(inner["out"]["kernel"])
        y = y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + 1e-6)
        y = x + y * np.asarray(inner["norm"]["scale"])[None, None]
        np.testing.assert_allclose(block.per_layer(x, vectors[1]), y, rtol=1e-9)
        with pytest.raises(ValueError, match="needs the tokens"):
            module.hidden_from(module.embed(tokens), small.context(ids))


@by_form
def test_parameters_work_and_state_are_counted(form):
    model, params = made(form)
    rows = layer_table(model, 64)
    assert sum(row.parameters for row in rows) == model.count()
    counted = work_counter(model)(np.ones((1, 64), np.int32)).flops
    assert counted == pytest.approx(64 * train_flops_per_token(model, 64), rel=1e-12)
    names = [name for name, _ in model.config.layer_mixers()]
    held = dict(enumerate(state_bytes(model.config, 4)))
    assert {i for i, size in held.items() if not size} == {
        i for i, name in enumerate(names) if name.endswith("_in")
    }
    states = model.bind(params).init_decode(1, 4, jnp.bfloat16)
    caches = jax.tree.leaves(states, is_leaf=lambda x: isinstance(x, TokenCache))
    kept = sum(
        entry.nbytes for cache in caches if isinstance(cache, TokenCache) for entry in cache.entries
    )
    assert kept == sum(size for i, size in held.items() if names[i] != "rec")


def test_bad_settings_are_one_sentence():
    def refused(match, pattern="local local_in", **mixers):
        with pytest.raises((Invalid, UserError), match=match):
            small.model_config(pattern, mixers=MIXERS | mixers)

    refused("reads 'a', and no layer below gives it", "local_in local")
    refused("goes without kv_out", local=dict(LOCAL, kv_out="a", kv_in="b"))
    refused("goes without forget_gate", local=dict(LOCAL, kv_out="a", forget_gate=True, rope=None))
    refused("is empty", local=dict(LOCAL, kv_out=""))
    for name, value in (("values", "keys"), ("v_norm", True), ("value_scale", 0.5)):
        said = f"{name} does nothing with kv_in: set it in the layer that makes the values"
        refused(said, local_in=dict(LOCAL, kv_in="a") | {name: value})
    refused("shorter than its own", local_in=dict(LOCAL, kv_in="a", window=6))
    refused("'a.keys' the shape", local_in=dict(LOCAL, kv_in="a", kv_heads=4))
    refused("other tokens than", "local far local_in", far=dict(LOCAL, window=9, kv_out="a"))
    indexer = {x: y for x, y in small.MIXERS["dsa_pool"].items() if x != "pool"} | dict(top_k=8)
    refused("no layer below gives it .index_out", rec=dict(indexer, index_in="i"), pattern="rec")
    for pools in ((2, 1), (1, 2)):
        made, read = (dict(indexer, pool=pool) for pool in pools)
        one, other = dict(made, index_out="i"), dict(read, index_in="i")
        refused("kind or pool is another", "far local", far=one, local=other)
    refused("kind or pool is another", "local far", far=dict(indexer, index_in="a"))
    branches = dict(one=dict(LOCAL, kv_out="a"), two=dict(kind="rglru", heads=2))
    refused("has a branch with kv_out or kv_in", rec=dict(kind="parallel", branches=branches))
    with pytest.raises(Invalid, match="is 39: it must be at least vocab_size, 40"):
        config("pairs", per_layer=dict(size=4, rows=39))
    with pytest.raises(Invalid, match="dense_beside_moe norms the residual stream itself"):
        config("pairs", mlp=BESIDE, block="parallel")
    with pytest.raises(UserError, match="dense_beside_moe.dense.kind is 'moe'"):
        config("pairs", mlp=dict(BESIDE, dense=dict(kind="moe")))
