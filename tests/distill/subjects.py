"""Small teachers with softmax attention, and what tests of distillation ask of models."""

import pathlib

import jax
import numpy as np

from hybridlm.data.tokenizers import NoTokenizer
from hybridlm.models.params import Model
from hybridlm.runs.opened import OpenedModel
from tests.models.small import make, model_config

FULL = dict(kind="attention", heads=4, kv_heads=2)


def opened(config, seed=0) -> OpenedModel:
    """A model with drawn parameters, as `open_model` would give it."""
    model, params = make(config, seed)
    return with_params(model, jax.tree.map(np.asarray, params))


def with_params(model: Model, params) -> OpenedModel:
    path = pathlib.Path("drawn")
    return OpenedModel(path, model, params, NoTokenizer("drawn"), None, {"length": 32}, None)


def teacher(depth=4, seed=0, **attention) -> OpenedModel:
    """A transformer with grouped attention in all layers."""
    mixers = {"full": {**FULL, **attention}}
    return opened(model_config("full", depth=depth, mixers=mixers), seed)


def tokens(seed=0, batch=2, time=24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 40, (batch, time))
