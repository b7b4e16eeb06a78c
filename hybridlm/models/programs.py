"""Jitted functions of a model, built once per model."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from hybridlm.models.params import Model


def per_model(build: Callable[..., Any]) -> Callable[..., Any]:
    """Caches `build(model, dtype, *settings)` by the identity of the model.

    A `Model` is not hashable, and a new jitted function would be compiled again.
    """

    @functools.lru_cache(maxsize=32)
    def cached(key: _Identity, dtype: jnp.dtype, *settings: Any) -> Any:
        return build(key.model, dtype, *settings)

    @functools.wraps(build)
    def get(model: Model, dtype: jnp.dtype, *settings: Any) -> Any:
        return cached(_Identity(model), jnp.dtype(dtype), *settings)

    return get


class _Identity:
    def __init__(self, model: Model):
        self.model = model  # the reference keeps the id unique

    def __hash__(self) -> int:
        return id(self.model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.model is self.model
