"""Edits of activations: patch, ablate and scale.

An edit is a function of an activation that keeps its shape. Those made here are pytrees: their arrays
are arguments of the compiled program, so that a loop over values, positions or heads compiles it once
a shape. A function of your own is part of the program, and each new function object compiles anew.

`positions` (one, or several; negative ones count from the end) and `heads` restrict an edit to tokens,
axis 1, and to heads, axis 2, of an activation (batch, time, heads, ...).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Edit = Callable[[jax.Array], jax.Array]
TOKENS, HEADS = 1, 2  # axes


def patch(value: Any, *, positions: Any = None, heads: Any = None) -> Edit:
    """Replaces an activation by `value`, an array that broadcasts to its shape."""
    return Affine(0.0, value, positions, heads)


def scale(factor: Any, *, positions: Any = None, heads: Any = None) -> Edit:
    """Multiplies an activation by `factor`, a number or an array that broadcasts to its shape."""
    return Affine(factor, 0.0, positions, heads)


def add(value: Any, *, positions: Any = None, heads: Any = None) -> Edit:
    """Adds `value`, e.g. a direction (width,), to an activation."""
    return Affine(1.0, value, positions, heads)


def ablate(*, positions: Any = None, heads: Any = None) -> Edit:
    """Replaces an activation by 0."""
    return patch(0.0, positions=positions, heads=heads)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Affine:
    """factor x + value, where `positions` and `heads` select; a factor of 0 drops x, NaN too."""

    factor: Any
    value: Any
    positions: Any
    heads: Any

    def __call__(self, x: jax.Array) -> jax.Array:
        factor, value = (jnp.asarray(y, x.dtype) for y in (self.factor, self.value))
        new = jnp.where(factor == 0, 0, factor * x) + value
        for axis, chosen in ((TOKENS, self.positions), (HEADS, self.heads)):
            if chosen is not None:
                new = jnp.where(_selected(chosen, axis, x.shape), new, x)
        return jnp.broadcast_to(new, x.shape)


def _selected(chosen: Any, axis: int, shape: tuple[int, ...]) -> jax.Array:
    """bool, True at the indices `chosen` of `axis`; broadcasts to `shape`."""
    index = jnp.arange(shape[axis])
    chosen = jnp.atleast_1d(jnp.asarray(chosen)) % shape[axis]
    selected = jnp.any(index[:, None] == chosen[None], axis=1)
    return selected.reshape((-1,) + (1,) * (len(shape) - axis - 1))
