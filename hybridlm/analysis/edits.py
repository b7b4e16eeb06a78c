"""Edits of activations: patch, ablate and scale.

An edit is a function of an activation that keeps its shape. Those made here are pytrees: their arrays
are arguments of the compiled program, so that a loop over values, positions or heads compiles it once
a shape. A function of your own is part of the program, and each new function object compiles anew.

`positions` and `heads` (one, or several; negative ones count from the end) restrict an edit to tokens
and to heads: axes 1 and 2 of an activation (batch, time, heads, ...). In scores and patterns of attention
(batch, heads, queries, keys) positions are those of the queries.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybridlm.errors import UserError
from hybridlm.models.hooks import Edit
from hybridlm.models.mixers import patterns

Axes = tuple[int, int]
AXES: Axes = (1, 2)  # of tokens and heads
AXES_OF_PATTERNS: Axes = (2, 1)


def patch(value: Any, *, positions: Any = None, heads: Any = None) -> Edit:
    """Replaces an activation by `value`, an array that broadcasts to its shape."""
    return Affine(0.0, value, _indices(positions, "positions"), _indices(heads, "heads"))


def scale(factor: Any, *, positions: Any = None, heads: Any = None) -> Edit:
    """Multiplies an activation by `factor`, a number or an array that broadcasts to its shape."""
    return Affine(factor, 0.0, _indices(positions, "positions"), _indices(heads, "heads"))


def add(value: Any, *, positions: Any = None, heads: Any = None) -> Edit:
    """Adds `value`, e.g. a direction (width,), to an activation."""
    return Affine(1.0, value, _indices(positions, "positions"), _indices(heads, "heads"))


def ablate(*, positions: Any = None, heads: Any = None) -> Edit:
    """Replaces an activation by 0."""
    return patch(0.0, positions=positions, heads=heads)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Affine:
    """factor x + value, where `positions` and `heads` select; a factor of 0 drops x, NaN too.

    Attributes:
      axes: those that positions and heads select from.
    """

    factor: Any
    value: Any
    positions: Any
    heads: Any
    axes: Axes = dataclasses.field(default=AXES, metadata=dict(static=True))

    def __call__(self, x: jax.Array) -> jax.Array:
        factor, value = (jnp.asarray(y, x.dtype) for y in (self.factor, self.value))
        new = jnp.where(factor == 0, 0, factor * x) + value
        for axis, chosen in zip(self.axes, (self.positions, self.heads), strict=True):
            if chosen is not None:
                new = jnp.where(_selected(chosen, axis, x.shape), new, x)
        return jnp.broadcast_to(new, x.shape)

    def check(
        self, name: str, shape: tuple[int, ...], tokens_shape: tuple[int, ...], one_end: bool
    ) -> None:
        """Raises UserError where positions or heads are not those of the activation `name`.

        Args:
          shape: of the activation; without an axis of tokens it has none of heads either.
          tokens_shape: (batch, time).
          one_end: whether positions may count from the end.
        """
        by_token = self.axes == AXES_OF_PATTERNS or shape[:2] == tuple(tokens_shape)
        indices = dict(positions=self.positions, heads=self.heads)
        for axis, (what, chosen) in zip(self.axes, indices.items(), strict=True):
            if chosen is None:
                continue
            if not by_token or axis >= len(shape):
                raise UserError(
                    f"{name} has the shape {shape}, without an axis for {what}: name none"
                )
            if isinstance(chosen, jax.core.Tracer):
                continue
            size = shape[axis]
            if what == "positions" and not one_end and np.any(np.asarray(chosen) < 0):
                raise UserError(
                    f"positions of {name} count from the end, and the texts' ends differ: count from"
                    " the start"
                )
            for index in np.atleast_1d(chosen):
                if not -size <= index < size:
                    raise UserError(
                        f"{what} has {index}, and {name} has {size}: from 0 to {size - 1}"
                    )


def for_activation(name: str, edit: Any) -> Any:
    """The edit with the axes that the activation `name` has; a function of your own as it is."""
    if isinstance(edit, Affine):
        last = name.rpartition(".")[2]
        pattern = last in (patterns.SCORES, patterns.PATTERN)
        return dataclasses.replace(edit, axes=AXES_OF_PATTERNS if pattern else AXES)
    return edit


def _indices(chosen: Any, what: str) -> Any:
    """Positions or heads as one array of int32."""
    if chosen is None or isinstance(chosen, jax.Array):
        return chosen
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(chosen)):
        return jnp.stack(chosen)
    indices = np.asarray(chosen)
    if indices.size and not np.issubdtype(indices.dtype, np.integer):
        raise UserError(f"{what} is {chosen!r}: it must be whole numbers")
    return indices.astype(np.int32)


def _selected(chosen: Any, axis: int, shape: tuple[int, ...]) -> jax.Array:
    """bool, True at the indices `chosen` of `axis`; broadcasts to `shape`."""
    index = jnp.arange(shape[axis])
    chosen = jnp.atleast_1d(jnp.asarray(chosen))
    chosen = jnp.where(chosen < 0, chosen + shape[axis], chosen)  # outside the axis: none
    selected = jnp.any(index[:, None] == chosen[None], axis=1)
    return selected.reshape((-1,) + (1,) * (len(shape) - axis - 1))
