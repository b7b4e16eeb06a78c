"""What a law is checked on, random draws for it, and comparisons of results."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any


@dataclasses.dataclass(frozen=True)
class Subject:
    """An op or a mixer to check.

    Arguments:
      name: for error messages.
      apply: `apply(inputs, params, segment_ids, state, impl) -> (outputs, final_state)`;
        inputs and outputs are dicts of arrays (B, T, ...), segment_ids may be None, state
        may be None (no tokens before).
      inputs: `inputs(rng, batch, time, dtype)` draws the inputs.
      params: `params(rng, dtype)` draws the arrays without a time axis, {} if there are none.
      state: `state(rng, batch, dtype)` draws a state whose tokens belong to document 1.
      op: False for a whole mixer, whose projections let padding reach its parameters' gradients.
      extremes: named functions inputs -> inputs that set gates and magnitudes to extreme values.
    """

    name: str
    apply: Callable
    inputs: Callable
    params: Callable = lambda rng, dtype: {}
    state: Callable | None = None
    op: bool = True
    extremes: dict[str, Callable] = dataclasses.field(default_factory=dict)


def normal(rng: np.random.Generator, shape: Sequence[int], dtype) -> jax.Array:
    """Standard normal numbers as a jax array."""
    return jnp.asarray(rng.standard_normal(tuple(shape)), dtype)


def draw_segment_ids(
    rng: np.random.Generator, batch: int, time: int, documents: int = 4, padding: float = 0.3
) -> jax.Array:
    """(B, T) ids with about `documents` runs per row at random boundaries. A run is padding with
    probability `padding`. Ids repeat, so equal ids need not be one document."""
    ids = np.zeros((batch, time), np.int32)
    for row in ids:
        cuts = np.sort(rng.integers(0, time + 1, size=documents - 1))
        for run in np.split(np.arange(time), cuts):
            row[run] = 0 if rng.random() < padding else rng.integers(1, 4)
    return jnp.asarray(ids)


def error(got: Tree, want: Tree) -> float:
    """Largest |got - want| over all leaves, each relative to the largest |want| of its leaf
    (at least 1e-3)."""
    worst = 0.0
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        if x.shape != y.shape:
            raise AssertionError(f"shapes differ: {x.shape} and {y.shape}")
        if x.size:
            worst = max(worst, nan_is_inf(np.max(np.abs(x - y))) / max(1e-3, np.max(np.abs(y))))
    return worst


def assert_close(law: str, got: Tree, want: Tree, tolerance: float) -> None:
    """AssertionError naming the leaf with the largest relative error if it exceeds `tolerance`."""
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(want)]
    errors = [error(x, y) for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)]
    worst = int(np.argmax(errors)) if errors else 0
    if errors and not errors[worst] <= tolerance:
        raise AssertionError(f"{law}: {names[worst]} off by {errors[worst]:.3e} > {tolerance:.1e}")


_COLLECTIVE = re.compile(
    r" = (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute|"
    r"collective-broadcast)(?:-start)?\("
)


def collectives(text: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """(kind, dtype, shape) of every array in the results of a compiled program's collectives.

    `text` is the result of `jax.stages.Compiled.as_text()`; dtypes are written as there, "f32".
    """
    return [
        (kind, dtype, tuple(int(n) for n in sizes.split(",") if n))
        for types, kind in _COLLECTIVE.findall(text)
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", types)
    ]


def runner(subject: Subject, impl: str) -> Callable:
    """A compiled `run(inputs, params, segment_ids, state, cotangents=None)`.

    It returns a dict of outputs, final state and, with cotangents (from `draw_cotangents`), the
    gradients of inputs, params and the state's floating leaves.
    """

    def run(inputs, params, segment_ids, state, cotangents=None):
        leaves, rebuild = floats(state)

        def forward(inputs, params, leaves):
            outputs, final = subject.apply(inputs, params, segment_ids, rebuild(leaves), impl)
            return (outputs, floats(final)[0]), final

        if cotangents is None:
            (outputs, _), final = forward(inputs, params, leaves)
            return dict(outputs=outputs, final=final)
        (outputs, _), vjp, final = jax.vjp(forward, inputs, params, leaves, has_aux=True)
        return dict(outputs=outputs, final=final, gradients=vjp(cotangents))

    return jax.jit(run)


def draw_cotangents(rng, subject, impl, inputs, params, segment_ids, state) -> tuple:
    """Random cotangents for the outputs and the floating leaves of the final state."""

    def forward(inputs, params, state):
        outputs, final = subject.apply(inputs, params, segment_ids, state, impl)
        return outputs, floats(final)[0]

    shapes = jax.eval_shape(forward, inputs, params, state)
    return jax.tree.map(lambda s: normal(rng, s.shape, s.dtype), shapes)


def floats(tree: Tree) -> tuple[list, Callable]:
    """The floating leaves of a tree, and a function that replaces them."""
    leaves, structure = jax.tree.flatten(tree)
    is_float = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def rebuild(replaced):
        replaced = iter(replaced)
        filled = [next(replaced) if f else leaf for f, leaf in zip(is_float, leaves, strict=True)]
        return jax.tree.unflatten(structure, filled)

    return [leaf for f, leaf in zip(is_float, leaves, strict=True) if f], rebuild


def like(mask_BT, x):
    return mask_BT.reshape(mask_BT.shape + (1,) * (x.ndim - 2))


def nan_is_inf(x) -> float:
    return float("inf") if np.isnan(x) else float(x)
