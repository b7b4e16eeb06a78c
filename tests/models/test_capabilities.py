"""Capabilities of mixers: rows of attention, scaled heads, a narrower window, slots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from hybridlm.models.mixers import LayerSpec, capabilities, read_mixer
from hybridlm.models.mixers.last_tokens import LastTokens
from hybridlm.models.mixers.nha import merge
from hybridlm.models.params import Model
from kernels_pallas.attention import attention
from kernels_pallas.block_sparse import block_sparse_attention

WIDTH, TIME = 32, 24
IDS = np.asarray([[1] * 9 + [2] * 2 + [1] * 10 + [0] * 3, [0] + [3] * 22 + [4]], np.int32)
ROWS = np.asarray([[20, 0, 10, 22, -1], [23, 22, 5, 0, 1]], np.int32)


def slow(*names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


HEADED = ["sink", "chunked", "moba", "nha", *slow("swa", "forgetful_swa", "mla", "nha0", "nha_llm")]


def built(name, seed=0, **changes):
    """A mixer of `small.MIXERS` with random parameters, an input, and a context of documents."""
    config = read_mixer({**small.MIXERS[name], **changes}, name)
    config.check_width(WIDTH)
    spec = LayerSpec(WIDTH, 1e-6, 1.0)
    abstract = nnx.eval_shape(lambda: config.build(spec, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(abstract)
    rng = np.random.default_rng(seed)

    def draw(p):
        return jnp.asarray((p.ndim == 1) + 0.3 * rng.standard_normal(p.shape), jnp.float32)

    module = nnx.merge(graphdef, jax.tree.map(draw, state))
    x = rng.standard_normal((2, TIME, WIDTH)).astype(np.float32)
    return module, jnp.asarray(x), small.context(IDS)


def run(module, function):
    """`function(module)`, compiled as one program."""
    graphdef, state = nnx.split(module)
    return jax.tree.map(np.asarray, jax.jit(lambda s: function(nnx.merge(graphdef, s)))(state))


def outputs(module, x, context):
    return run(module, lambda m: m(x, context))


def values(module, x, context):
    """(values by query head, the function from the heads' results to the mixer's output)."""
    kind = type(module).__name__
    if kind == "MLA":
        return module._expand(module._project(x, context)[1])[1], module._output
    if kind == "NHA":
        v = module._project(x, context)[2]
        return jnp.repeat(v, module.config.heads // v.shape[2], axis=2), module._output
    v = module._project(x, context)[2]
    v = jnp.repeat(v, module.config.heads // v.shape[2], axis=2)
    if kind == "MoBA":
        return v, lambda out: module.out(out.reshape(*out.shape[:2], -1))
    return v, lambda out: module._output(out, x, context)


def dense(module, x, context):
    """The (B, H, T, T) attention map, from the mixer's own op with unit vectors as values."""
    kind, ids = type(module).__name__, context.segment_ids_BT

    def units(k):
        return jnp.broadcast_to(jnp.eye(TIME)[None, :, None], (*k.shape[:3], TIME))

    if kind == "MLA":
        q, latent = module._project(x, context)
        k, _ = module._expand(latent)
        out, _ = attention(q, k, units(k), segment_ids=ids, scale=module.scale)
    elif kind == "MoBA":
        q, k, _ = module._project(x, context)
        blocks = dict(block=module.config.block, top_k=module.config.top_k)
        out, _ = block_sparse_attention(q, k, units(k), segment_ids=ids, **blocks)
    elif kind == "NHA":
        (_, slots_lse), _, _ = module._parallel(x, context)
        q, tokens = module._tokens(x, context)
        if module.config.window == 0:
            return jnp.zeros((2, module.config.heads, TIME, TIME))
        tokens = tokens._replace(v_BSGV=units(tokens.v_BSGV))
        out, lse = module._attend(q, tokens, None)
        out = merge((jnp.zeros_like(out), slots_lse), (out, lse))
    else:
        q, k, _ = module._project(x, context)
        ids = module.span.segment_ids(context)
        options = dict(window=module._window(context), **module._logit_options())
        gates = dict(log_forget_BTH=module.forget(x))
        out, _ = attention(q, k, units(k), segment_ids=ids, **gates, **options)
    return jnp.moveaxis(out, 1, 2)


@pytest.mark.parametrize("name", HEADED)
def test_rows_equal_those_of_the_dense_map(name):
    """With sinks, caps, temperatures, spans, slots and documents; padding attends to nothing.

    The rows applied to the values give the mixer's output.
    """
    warmer = dict(temperature=dict(scale=5.0)) if name == "sink" else {}
    module, x, context = built(name, **warmer)
    every = jnp.broadcast_to(jnp.arange(TIME)[None], (2, TIME))

    def figures(module):
        found = module.attention_rows(x, context, jnp.asarray(ROWS))
        probs = module.attention_rows(x, context, every).probs_BHQT
        v, output = values(module, x, context)
        mixed = jnp.einsum("bhqt,bthv->bqhv", probs, v)
        share = 0
        if capabilities.has_slots(module):
            share = module.slot_share(x, context)
            mixed += share[..., None] * module._parallel(x, context)[0][0]
        return found, dense(module, x, context), probs, share, output(mixed), module(x, context)

    found, whole, probs, share, again, y = run(module, figures)
    assert found.probs_BHQT.shape == (2, module.attention_heads, 5, TIME)
    for b in range(2):
        for i, row in enumerate(ROWS[b]):
            there = row >= 0 and IDS[b, row] != 0
            want = whole[b, :, row] if there else np.zeros_like(whole[b, :, 0])
            np.testing.assert_allclose(found.probs_BHQT[b, :, i], want, atol=2e-6)
    assert not np.any(found.probs_BHQT[~found.visible_BHQT])
    real = IDS != 0
    np.testing.assert_allclose(again[real], y[real], atol=3e-5)
    if capabilities.has_slots(module):
        total = np.moveaxis(probs.sum(-1), 1, 2) + share
        np.testing.assert_allclose(total, np.broadcast_to(real[..., None], total.shape), atol=1e-5)


def test_the_heads_of_branches_are_concatenated():
    module, x, context = built("nested")
    assert module.attention_heads == 4 + 2
    rows = jnp.asarray(ROWS)

    def figures(module):
        inner = module.branches["pair"].branches["swa"]
        parts = [b.attention_rows(x, context, rows) for b in (module.branches["full"], inner)]
        return module.attention_rows(x, context, rows).probs_BHQT, [p.probs_BHQT for p in parts]

    found, parts = run(module, figures)
    np.testing.assert_allclose(found, np.concatenate(parts, axis=1), atol=1e-6)
    q, k = module.query_key_weights()
    assert q.shape[0] == k.shape[0] == 6


def abstract(settings):
    """A mixer without parameters."""
    config = read_mixer(settings, "m")
    return nnx.eval_shape(lambda: config.build(LayerSpec(WIDTH, 1e-6, 1.0), rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(
    "name, heads, slots, window",
    [
        ("swa", 4, 0, True),
        ("full", 4, 0, True),
        ("chunked", 4, 0, True),
        ("mla", 3, 0, True),
        ("moba", 4, 0, False),
        ("nha", 4, 4, True),
        ("nha_full", 2, 2, True),
        ("nha0", 2, 2, False),  # its window is 0
        ("gsa", 0, 0, False),
        ("rec", 0, 0, False),
        ("gdn", 0, 0, False),
        ("short", 0, 0, False),
        ("hymba", 2, 0, False),  # the recurrence beside the window sees all tokens
    ],
)
def test_capabilities_depend_on_the_settings(name, heads, slots, window):
    module = abstract(small.MIXERS[name])
    assert capabilities.attention_heads(module) == heads
    assert capabilities.attends(module) == (heads > 0)
    assert capabilities.slot_heads(module) == slots
    assert capabilities.has_slots(module) == (slots > 0)
    assert capabilities.has_window(module) == window


def test_a_parallel_mixer_has_the_capabilities_of_its_branches():
    """It has heads and slots if any branch has them, and a window if all have one."""
    rec, swa, nha = (small.MIXERS[name] for name in ("rec", "swa", "nha"))

    def of(**branches):
        module = abstract(dict(kind="parallel", branches=branches))
        heads, slots = capabilities.attention_heads(module), capabilities.slot_heads(module)
        return heads, slots, capabilities.has_window(module)

    assert of(a=rec, b=rec) == (0, 0, False)
    assert of(a=rec, b=nha) == (4, 4, False)
    assert of(a=swa, b=nha) == (8, 4, True)
    assert of(a=rec, b=dict(kind="parallel", branches=dict(c=rec, d=swa))) == (4, 0, False)


def test_slot_shares_are_in_the_order_of_branches(monkeypatch):
    nha = small.MIXERS["nha"]
    branches = dict(a=nha, b=small.MIXERS["rec"], c=dict(nha, slots=3, heads=2))
    monkeypatch.setitem(small.MIXERS, "parallel", dict(kind="parallel", branches=branches))
    module, x, context = built("parallel")

    def figures(module):
        parts = [module.branches[name].slot_share(x, context) for name in ("a", "c")]
        return module.slot_share(x, context), jnp.concatenate(parts, axis=2)

    share, want = run(module, figures)
    assert share.shape == (2, TIME, module.slot_heads) == (2, TIME, 6)
    np.testing.assert_array_equal(share, want)


@pytest.mark.parametrize("name", ["full", *slow("mla", "moba")])
def test_the_output_is_the_sum_over_single_heads(name):
    module, x, context = built(name)

    def figures(module):
        parts = []
        for h in range(module.attention_heads):
            copy = nnx.clone(module)
            copy.scale_heads(jax.nn.one_hot(h, module.attention_heads))
            parts.append(copy(x, context))
        return sum(parts), module(x, context)

    together, whole = run(module, figures)
    np.testing.assert_allclose(together, whole, atol=3e-5)


@pytest.mark.parametrize("name", ["full", *slow("sink", "nha")])
def test_narrowed_equals_a_mixer_built_with_that_window(name):
    module, x, context = built(name)
    want = outputs(built(name, window=4)[0], x, context)
    np.testing.assert_allclose(outputs(module.narrowed(4), x, context), want, atol=1e-5)


@pytest.mark.parametrize("name", ["growing", *slow("chunked", "mla", "parallel")])
def test_a_window_of_attention_equals_its_last_tokens(name, monkeypatch):
    branches = dict(
        a=dict(kind="attention", heads=2, window=9), b=dict(kind="attention", heads=4, rope=None)
    )
    monkeypatch.setitem(small.MIXERS, "parallel", dict(kind="parallel", branches=branches))
    module, x, context = built(name)
    real = IDS != 0
    want = outputs(module.narrowed(5), x, context)
    got = outputs(LastTokens(module, 5), x, context)
    np.testing.assert_allclose(got[real], want[real], atol=1e-5)
    assert np.abs(want - outputs(module, x, context)).max() > 1e-2


@pytest.mark.parametrize("name", ["rec", *slow("gdn", "moba")])
def test_last_tokens_are_all_that_a_mixer_sees(name):
    """Each output equals that of a document of these tokens; such a mixer has no window."""
    module, x, context = built(name)
    places = [(0, 8), (0, 10), (0, 17), (1, 15), (1, 23)]
    parts, ids = np.zeros((len(places), 6, WIDTH), np.float32), np.zeros((len(places), 6), np.int32)
    for i, (b, t) in enumerate(places):
        first = max(t - 5, int(np.flatnonzero(IDS[b, : t + 1] != IDS[b, t]).max(initial=-1)) + 1)
        parts[i, 5 + first - t :] = x[b, first : t + 1]
        ids[i, 5 + first - t :] = 1
    alone = outputs(module, jnp.asarray(parts), small.context(ids))
    got = outputs(LastTokens(module, 6), x, context)
    for i, place in enumerate(places):
        np.testing.assert_allclose(got[place], alone[i, -1], atol=1e-5)
    assert not capabilities.has_window(module)
    with pytest.raises(ValueError, match="no window to narrow to 6"):
        capabilities.narrowed(module, 6)


def drawn(config):
    """(Model, random parameters), without compiling."""
    model, rng = Model.of(config), np.random.default_rng(0)
    return model, jax.tree.map(
        lambda p: jnp.asarray(0.3 * rng.standard_normal(p.shape), p.dtype), model.abstract
    )


def test_blocks_are_the_layers_bottom_to_top():
    """The blocks of prefix, unit and suffix, run in order, equal the model."""
    config = small.model_config("full", depth=4, prefix="rec", suffix="sink")
    model, params = drawn(config)
    tokens = np.random.default_rng(0).integers(0, 40, (2, TIME))
    context = small.context(IDS)
    names = []

    @jax.jit
    def figures(params):
        module = model.bind(params)
        x, each = module.embed(tokens), []
        for name, block in module.blocks():
            names.append(name)
            x = block(x, context)
            each.append(x)
        each = [jnp.sum(x) for x in each]
        end, walked = module.map_layers(
            module.embed(tokens), context, lambda index, block, x, y, context: jnp.sum(y)
        )
        return (
            module.final_norm(x),
            module.final_norm(end),
            module.hidden(tokens, context),
            each,
            walked,
        )

    one_by_one, walked, whole, *sums = figures(params)
    assert tuple(names) == config.layout.names
    np.testing.assert_allclose(one_by_one, whole, atol=1e-5)
    np.testing.assert_allclose(walked, whole, atol=1e-5)
    np.testing.assert_allclose(*sums, rtol=1e-4)


def test_scaling_heads_changes_only_their_layer():
    config = small.model_config("swa full", depth=6, prefix="rec", suffix="sink")
    model, params = drawn(config)
    module, before = model.bind(params), model.bind(params)
    heads = [capabilities.attention_heads(block.mixer) for _, block in module.blocks()]
    assert heads == [0, 4, 4, 4, 4, 2]
    scales = [np.ones(n, np.float32) for n in heads]
    scales[3][1] = 0
    module.scale_heads([jnp.asarray(s) for s in scales])
    for index, ((_, new), (_, old)) in enumerate(zip(module.blocks(), before.blocks())):
        if heads[index]:
            want = np.array(old.mixer.out.kernel[...])
            size = len(want) // heads[index]
            if index == 3:
                want[size : 2 * size] = 0
            np.testing.assert_array_equal(new.mixer.out.kernel[...], want)
