"""Extrapolation settings: which layers they change, checked against formulas."""

import dataclasses
import math
import pathlib
import sys

import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "models"))
import small

from hybridlm import config as configs
from hybridlm.errors import UserError
from hybridlm.evals.extrapolation import extrapolated
from hybridlm.evals.settings import EvalSettings, Extrapolation
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model
from hybridlm.models.positional import Rope, RopeConfig, YarnConfig
from hybridlm.settings.text import read_options

MIXERS = {
    "near": dict(kind="attention", heads=2, window=4),
    "nope": dict(kind="attention", heads=2, rope=None),
    "rope": dict(kind="attention", heads=2),
}


@pytest.fixture
def config(in_root):
    """A run's settings with one layer of each kind, 64 tokens."""
    base = configs.load("configs/demo.py:smoke", [])
    model = dataclasses.replace(
        base.model, width=32, depth=3, pattern="near nope rope", mixers=MIXERS, vocab_size=40
    )
    return dataclasses.replace(base, model=model)


def apply(config, **settings):
    return extrapolated(config.model, Extrapolation(**settings), config.data.seq_len)


def test_no_setting_changes_nothing(config):
    assert apply(config) is config.model


def test_each_setting_changes_only_its_layers(config):
    changed = apply(config, logit_scale=64.0, rope_theta=5e5).mixers
    assert changed["near"] == config.model.mixers["near"]
    assert changed["nope"].temperature.scale == 64 and changed["nope"].rope is None
    assert changed["rope"].rope.theta == 5e5 and changed["rope"].temperature is None
    yarn = apply(config, yarn=4.0).mixers
    assert yarn["rope"].rope.yarn == YarnConfig(4.0, config.data.seq_len)
    assert yarn["near"].rope.yarn is None


def test_a_logit_scale_needs_no_new_parameters(config):
    """The scale is 1 at the first position and changes the logits of later ones."""
    model, far = Model.of(config.model), Model.of(apply(config, logit_scale=3.0))
    _, params = small.make(config.model)
    tokens = np.arange(12, dtype=np.int32)[None] % 40
    context = SequenceContext(np.ones_like(tokens), np.arange(12, dtype=np.int32)[None])
    a, b = (np.asarray(m.bind(params)(tokens, context)) for m in (model, far))
    np.testing.assert_allclose(a[:, 0], b[:, 0], atol=1e-5)
    assert np.abs(a[:, -1] - b[:, -1]).max() > 1e-4


def test_yarn_equals_the_papers_formula():
    """Eq. 17-23: the ramp over the turns within the trained length, and the factor on logits."""
    theta, size, length, factor = 10_000.0, 64, 4096, 8.0
    yarn = YarnConfig(factor, length)
    factors = yarn.frequency_factors(theta, size)
    frequencies = theta ** (-np.arange(0, size, 2) / size)
    turns = length * frequencies / (2 * math.pi)
    assert (factors[turns > 40] == 1).all() and (factors[turns > 40]).size > 5
    np.testing.assert_allclose(factors[turns < 0.8], 1 / factor)
    assert (np.diff(factors) <= 1e-12).all()
    x = np.ones((1, 2, 1, size), np.float32)
    positions = np.array([[0, 7]])
    out = np.asarray(Rope(RopeConfig(theta, yarn=yarn), size)(jnp.asarray(x), positions))
    magnitude = 0.1 * math.log(factor) + 1
    np.testing.assert_allclose(out[0, 0], magnitude, rtol=1e-6)
    angle = 7 * frequencies * factors
    np.testing.assert_allclose(
        out[0, 1, 0, : size // 2], magnitude * (np.cos(angle) - np.sin(angle)), atol=1e-5
    )
    one = Rope(RopeConfig(theta, yarn=YarnConfig(1.0, length)), size)(jnp.asarray(x), positions)
    plain = Rope(RopeConfig(theta), size)(jnp.asarray(x), positions)
    np.testing.assert_allclose(one, plain, atol=1e-6)


BAD = [
    (dict(logit_scale=1.0), "--logit_scale must be above 1, not 1.0"),
    (dict(yarn=0.5), "--yarn must be above 1"),
    (dict(rope_theta=-1.0), "--rope_theta must be positive"),
    (dict(rope_theta=1e6, yarn=2.0), "both stretch RoPE"),
]


@pytest.mark.parametrize("given, sentence", BAD, ids=[s for _, s in BAD])
def test_invalid_settings_are_refused(given, sentence):
    with pytest.raises(UserError, match=sentence):
        read_options(EvalSettings, {"tasks": ("vt",), "lengths": (512,), **given})


def test_a_base_that_the_model_cannot_take_names_the_option(config):
    """The model's own YaRN needs a base above 1; no key of a config is named."""
    yarned = dict(kind="attention", heads=2, rope=dict(yarn=dict(factor=2.0, length=64)))
    model = dataclasses.replace(config.model, mixers={**MIXERS, "rope": yarned})
    with pytest.raises(
        UserError, match="--rope_theta does not fit the model: its theta must be ab"
    ):
        apply(dataclasses.replace(config, model=model), rope_theta=0.5)


def test_a_setting_that_applies_to_no_layer_is_refused(config):
    model = dataclasses.replace(
        config.model,
        pattern="near nope",
        depth=2,
        mixers={name: MIXERS[name] for name in ("near", "nope")},
    )
    bare = dataclasses.replace(config, model=model)
    with pytest.raises(UserError, match="no global attention layer with RoPE"):
        apply(bare, yarn=2.0)
