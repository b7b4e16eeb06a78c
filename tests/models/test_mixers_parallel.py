"""Parallel mixers: their settings, how they combine outputs, and their costs."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import small
from flax import nnx

from hybridlm import config as run_config
from hybridlm.errors import ConfigError
from hybridlm.models.mixers import LayerSpec, read_mixer
from hybridlm.models.params import Model
from hybridlm.settings.plain import to_dict
from hybridlm.settings.reader import Invalid

ATTENTION = dict(kind="attention", heads=2, window=4)
RGLRU = dict(kind="rglru", heads=2)
BRANCHES = dict(swa=ATTENTION, rec=RGLRU)
SPEC = LayerSpec(width=32, norm_eps=1e-6, out_scale=0.25)


def parallel(**settings):
    return read_mixer(dict(kind="parallel", **{"branches": BRANCHES, **settings}), "m")


def run(mixer, seed=0):
    x_BTD = jax.random.normal(jax.random.key(seed), (2, 12, 32))
    context = jax.tree.map(jnp.asarray, small.context(np.ones((2, 12), int)))
    outputs = {n: b(x_BTD, context) for n, b in mixer.branches.items()}
    return mixer(x_BTD, context), outputs


def test_mean_is_of_normalised_outputs():
    """As in Hymba: each branch is normalised to RMS 1 and multiplied by its beta, then averaged."""
    mixer = parallel().build(SPEC, rngs=nnx.Rngs(0))
    beta = dict(swa=2.0, rec=-0.5)
    for name, norm in mixer.combine.norms.items():
        np.testing.assert_array_equal(norm.scale[...], np.full(32, SPEC.out_scale))
        norm.scale[...] = jnp.full(32, beta[name])
    y, outputs = run(mixer)
    rms = {n: jnp.sqrt(jnp.mean(o**2, -1, keepdims=True)) for n, o in outputs.items()}
    want = sum(beta[n] * outputs[n] / rms[n] for n in beta) / 2
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4)


def test_sum_has_fixed_multipliers_and_one_where_none_is_given():
    """As in Falcon-H1: it adds no parameters."""
    mixer = parallel(combine="sum", multipliers=dict(rec=0.25)).build(SPEC, rngs=nnx.Rngs(0))
    y, outputs = run(mixer)
    np.testing.assert_allclose(y, outputs["swa"] + 0.25 * outputs["rec"], rtol=1e-6)
    assert set(nnx.to_pure_dict(nnx.state(mixer))) == {"branches"}


def test_costs_are_sums_over_branches():
    config, parts = parallel(), [read_mixer(m, "m") for m in BRANCHES.values()]
    assert config.flops_per_token(32, 50) == sum(p.flops_per_token(32, 50) for p in parts)
    assert config.state_bytes(32, 50, 4) == sum(p.state_bytes(32, 50, 4) for p in parts)
    assert config.mechanism == "(RG-LRU, conv 4) + (window 4 attention, RoPE)"


def test_order_of_branches_does_not_matter():
    """Equal settings are equal mixers with equal parameters."""
    forward, backward = parallel(), parallel(branches=dict(reversed(BRANCHES.items())))
    assert forward == backward
    one, other = (c.build(SPEC, rngs=nnx.Rngs(0)) for c in (forward, backward))
    jax.tree.map(np.testing.assert_array_equal, nnx.state(one), nnx.state(other))


BAD = {
    "no branches": (dict(branches={}), "m.branches must name at least two mixers, not 0"),
    "one branch": (dict(branches=dict(a=RGLRU)), "m.branches must name at least two mixers, not 1"),
    "no mapping": (dict(branches=7), "m.branches must be a mapping of names, not 7"),
    "no kind": (dict(branches=dict(BRANCHES, a={})), "m.branches.a.kind is missing"),
    "bad kind": (
        dict(branches=dict(BRANCHES, a=dict(kind="rglu"))),
        "m.branches.a.kind is 'rglu': did you mean 'rglru'?",
    ),
    "bad key": (
        dict(branches=dict(BRANCHES, a=dict(ATTENTION, windw=3))),
        "unknown key m.branches.a.windw: did you mean 'window'?",
    ),
    "bad value": (
        dict(branches=dict(BRANCHES, a=dict(ATTENTION, window=0))),
        "m.branches.a.window must be at least 1",
    ),
    "deep": (
        dict(branches=dict(BRANCHES, a=dict(kind="parallel", branches=dict(BRANCHES, b=3)))),
        "m.branches.a.branches.b must be a mapping with a kind, not 3",
    ),
    "combine": (dict(combine="average"), "m.combine is 'average' (str): valid are: mean, sum"),
    "multiplier of nothing": (
        dict(combine="sum", multipliers=dict(swaa=1.0)),
        "m.multipliers.swaa is no branch: did you mean 'swa'?",
    ),
    "multiplier type": (
        dict(combine="sum", multipliers=dict(swa="big")),
        "m.multipliers.swa must be a number, not 'big'",
    ),
    "multipliers of a mean": (
        dict(multipliers=dict(swa=2.0)),
        'm.multipliers goes with combine "sum"',
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings(case):
    settings, sentence = BAD[case]
    with pytest.raises(ConfigError) as error:
        parallel(**settings)
    assert sentence in str(error.value)


def test_branches_missing():
    with pytest.raises(ConfigError, match="m.branches is missing"):
        read_mixer(dict(kind="parallel"), "m")


def test_a_branch_that_does_not_fit_the_width_is_named():
    with pytest.raises(Invalid) as error:
        parallel(branches=dict(BRANCHES, a=dict(kind="attention", heads=5))).check_width(32)
    assert error.value.field == "branches.a.heads"
    with pytest.raises(Invalid) as error:
        small.model_config("p", mixers=dict(p=dict(kind="parallel", branches=BRANCHES)), width=33)
    assert error.value.field == "mixers.p.branches.rec.heads"


def test_reads_back_from_its_json_form():
    config = read_mixer(small.MIXERS["nested"], "m")
    assert read_mixer(to_dict(config), "m") == config


def test_in_a_run_config(in_root):
    """It is read from a recipe, set from the command line, and refused with its full path."""
    config = run_config.load("configs/demo.py:smoke")
    mixers = dict(to_dict(config.model)["mixers"])
    base = to_dict(config)
    base["model"]["mixers"] = dict(mixers, rec=to_dict(parallel(branches=mixers)))
    read = run_config.read(base)
    assert sorted(read.model.mixers["rec"].branches) == sorted(mixers)
    assert run_config.read(run_config.to_dict(read)) == read
    base["model"]["mixers"]["rec"]["branches"]["swa"]["window"] = 0
    with pytest.raises(ConfigError, match=r"^model\.mixers\.rec\.branches\.swa\.window must be"):
        run_config.read(base)


def test_smoke_shrinks_branches_too(in_root):
    smoke = run_config.recipe_module("configs/common.py").smoke
    recipe = ml_collections.ConfigDict(to_dict(run_config.load("configs/demo.py")))
    inner = dict(a=dict(kind="attention", heads=2, window=99), b=RGLRU)
    outer = dict(pair=dict(kind="parallel", branches=inner), swa=dict(ATTENTION, window=99))
    recipe.model.mixers.rec = dict(kind="parallel", branches=outer)
    small_one = run_config.read(smoke(recipe)).model
    assert small_one.mixers["rec"].branches["pair"].branches["a"].window == 16
    assert small_one.mixers["rec"].branches["swa"].window == 16


def test_trains_in_a_scanned_hybrid():
    """Three repeats of a unit with a nested mixer give finite gradients for all parameters."""
    model, params = small.make(small.model_config("nested full", depth=6))
    assert isinstance(model, Model)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 40, (2, 10)))
    context = small.context(np.ones((2, 10), int))

    def loss(params):
        return jnp.mean(jax.nn.logsumexp(model.bind(params)(tokens, context), axis=-1))

    gradients = jax.jit(jax.grad(loss))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(leaf)), name
        assert np.any(leaf), f"no gradient reaches {name}"
