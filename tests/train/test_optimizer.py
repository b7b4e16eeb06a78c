"""Learning-rate schedules, weight-decay masks and the three optimizers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybridlm.config import OptimizerConfig
from hybridlm.models.params import Model
from hybridlm.train.optimizer import learning_rate, make_optimizer
from tests.models import small


def rates(steps=100, **settings):
    config = OptimizerConfig(lr=2.0, **settings)
    return np.array([float(learning_rate(config, steps, jnp.int32(s))) for s in range(steps)])


def test_warmup_is_linear_and_starts_above_0():
    r = rates(schedule="constant", warmup_steps=10)
    np.testing.assert_allclose(r[:10], 0.2 * np.arange(1, 11), rtol=1e-6)
    np.testing.assert_allclose(r[10:], 2.0)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_a_multiplier_is_a_higher_rate_bit_for_bit(schedule):
    factors = np.random.default_rng().uniform(0.01, 20, 5)
    config = OptimizerConfig(lr=3e-3, schedule=schedule, warmup_steps=7)
    for step in map(jnp.int32, (0, 5, 6, 40, 99)):
        higher = [dataclasses.replace(config, lr=config.lr * factor) for factor in factors]
        expected = [learning_rate(each, 100, step) for each in higher]
        assert [learning_rate(config, 100, step, float(f)) for f in factors] == expected
        rows = learning_rate(config, 100, step, factors.reshape(5, 1, 1))
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows.ravel(), expected)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_decay_ends_at_the_final_fraction(schedule):
    r = rates(schedule=schedule, warmup_steps=10, final_lr_fraction=0.1)
    assert r[9] == pytest.approx(2.0)
    assert r[-1] == pytest.approx(0.2)
    assert np.all(np.diff(r[9:]) < 0)
    middle = {"cosine": 1.1, "linear": 1.1}[schedule]
    assert r[54] == pytest.approx(middle, rel=1e-3)


def test_wsd_is_constant_then_linear():
    r = rates(schedule="wsd", warmup_steps=5, decay_steps=20, final_lr_fraction=0.0)
    np.testing.assert_allclose(r[4:80], 2.0)
    np.testing.assert_allclose(np.diff(r[80:]), -0.1, rtol=1e-4)
    assert r[-1] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "steps", "warmup", "decay", "expected"),
    [
        # The warm-up takes all steps: the last one has the peak.
        ("constant", 4, 4, None, [0.25, 0.5, 0.75, 1]),
        ("cosine", 4, 4, None, [0.25, 0.5, 0.75, 1]),
        ("linear", 4, 4, None, [0.25, 0.5, 0.75, 1]),
        ("cosine", 1, 1, None, [1]),
        ("linear", 1, 1, None, [1]),
        # One step is left: it has the final fraction.
        ("cosine", 4, 3, None, [1 / 3, 2 / 3, 1, 0.1]),
        ("linear", 4, 3, None, [1 / 3, 2 / 3, 1, 0.1]),
        ("cosine", 1, 0, None, [0.1]),
        ("linear", 1, 0, None, [0.1]),
        ("constant", 1, 0, None, [1]),
        ("linear", 4, 2, None, [0.5, 1, 0.55, 0.1]),
        ("cosine", 4, 2, None, [0.5, 1, 0.55, 0.1]),
        # The decay begins after the peak.
        ("wsd", 4, 2, 2, [0.5, 1, 0.55, 0.1]),
        ("wsd", 4, 3, 1, [1 / 3, 2 / 3, 1, 0.1]),
        ("wsd", 5, 1, 2, [1, 1, 1, 0.55, 0.1]),
        ("wsd", 2, 0, 2, [0.55, 0.1]),
        ("wsd", 1, 0, 1, [0.1]),
    ],
)
def test_every_warmup_ends_at_the_peak(schedule, steps, warmup, decay, expected):
    """Shares of the peak, worked out by hand, with a final fraction of 0.1."""
    r = rates(steps, schedule=schedule, warmup_steps=warmup, decay_steps=decay)
    np.testing.assert_allclose(r / 2.0, expected, rtol=1e-6)


PARAMS = {
    "embedding": jnp.ones((6, 4)),
    "layer": {"q": {"kernel": jnp.ones((2, 4, 4))}, "norm": {"scale": jnp.ones((2, 4))}},
}


DECAYS = {"embedding": False, "layer": {"q": {"kernel": True}, "norm": {"scale": False}}}


def flags(tree) -> dict[str, bool]:
    """The flags of `Model.decay` or `Model.muon` by path."""
    named = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in named}


def test_weight_decay_applies_to_marked_parameters_only():
    optimizer = make_optimizer(OptimizerConfig(lr=1.0, weight_decay=0.5), DECAYS, DECAYS)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    directions, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(directions["layer"]["q"]["kernel"], 0.5)
    assert not np.any(directions["embedding"]) and not np.any(directions["layer"]["norm"]["scale"])


@pytest.mark.parametrize("block", ["prenorm", "sandwich", "parallel"])
def test_kernels_decay_and_muon_updates_those_of_linear_maps(block):
    """Norms, biases and embeddings do not decay; Muon updates no head and no depthwise filter."""
    names = list(small.MIXERS)
    config = small.model_config(" ".join(names), block=block, tie_embeddings=False)
    model = Model.of(config)
    decays, muon = flags(model.decay), flags(model.muon)
    assert {p for p, x in decays.items() if x} == {p for p in decays if p.endswith("/kernel")}
    filters = {p for p, axes in flags_of_axes(model).items() if "conv" in axes}
    assert len(filters) > 10
    assert {p for p, x in muon.items() if x} == {
        p for p, x in decays.items() if x and p not in filters and not p.startswith("head/")
    }


def flags_of_axes(model):
    leaves = jax.tree_util.tree_leaves_with_path(model.axes, is_leaf=lambda x: type(x) is tuple)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in leaves}


@pytest.mark.parametrize("name", ["conv", "convnext", "head", "norm"])
def test_a_mixers_name_changes_no_flag(name):
    def of(name):
        mixers = {name: dict(kind="gdn", heads=2)}
        model = Model.of(small.model_config(name, mixers=mixers))
        found = [flags(model.decay), flags(model.muon)]
        return [{p.replace(f"0_{name}", "layer"): x for p, x in f.items()} for f in found]

    assert of(name) == of("rec")


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
def test_directions_point_up_the_gradient(name):
    """params - rate * direction lowers a quadratic with every optimizer."""
    config = OptimizerConfig(lr=0.02, name=name, weight_decay=0.0)
    optimizer = make_optimizer(config, DECAYS, DECAYS)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), jnp.float32), PARAMS)
    loss = lambda p: sum(jnp.sum(x**2) for x in jax.tree.leaves(p))  # noqa: E731
    state, first = optimizer.init(params), float(loss(params))

    @jax.jit
    def step(params, state):
        directions, state = optimizer.update(jax.grad(loss)(params), state, params)
        return jax.tree.map(lambda p, d: p - config.lr * d, params, directions), state

    for _ in range(30):
        params, state = step(params, state)
    assert float(loss(params)) < 0.7 * first


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 3, 8, 8)], ids=["layers", "experts of layers"])
def test_muon_orthogonalises_each_matrix_of_a_stack(shape):
    settings = OptimizerConfig(lr=1.0, name="muon", weight_decay=0.0)
    optimizer = make_optimizer(settings, *[{"k": {"kernel": True}}] * 2)
    grads = {"k": {"kernel": jax.random.normal(jax.random.key(0), shape)}}
    directions, _ = optimizer.update(grads, optimizer.init(grads), grads)
    for matrix in directions["k"]["kernel"].reshape(-1, 8, 8):
        singular = np.linalg.svd(np.asarray(matrix), compute_uv=False)
        assert singular.min() > 0.3 and singular.max() < 1.5  # five Newton-Schulz iterations


def test_muon_leaves_other_parameters_to_adam():
    """The first direction of Adam is the gradient's sign."""
    settings = OptimizerConfig(lr=1.0, name="muon", weight_decay=0.0, eps=1e-20)
    muon = {n: {"kernel": n == "q"} for n in ("head", "conv", "q")}
    optimizer = make_optimizer(settings, muon, muon)
    shapes = {"head": (8, 6), "conv": (4, 8), "q": (8, 8)}
    grads = {n: {"kernel": jax.random.normal(jax.random.key(0), s)} for n, s in shapes.items()}
    directions, _ = optimizer.update(grads, optimizer.init(grads), grads)
    for name in ("head", "conv"):
        expected = np.sign(grads[name]["kernel"])
        np.testing.assert_allclose(directions[name]["kernel"], expected, rtol=1e-5)
    assert np.abs(np.abs(directions["q"]["kernel"]) - 1).max() > 0.1
