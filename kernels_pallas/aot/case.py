"""A case of the scorecard: a call with representative shapes, as data."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Array(NamedTuple):
    """Shape and dtype of an argument."""

    shape: tuple[int, ...]
    dtype: Any = jnp.bfloat16


class Case(NamedTuple):
    """One call to compile.

    Arguments:
      name: unique; the name of the scorecard's row.
      function: takes arrays, traced for the chip's platform with kernels on.
      arguments: shapes and dtypes of its arrays.
      tokens: B * T * H; bundles are reported per token of one head.
      flops: model FLOPs of the call (a multiply-add is 2).
      rival_of: the name of our case that this case of another project is compared with.
      active: the share of grid steps at which data-dependent regions run, by a part of the kernel's
        name; 1 if not stated.
      trips: the mean trip counts of data-dependent loops, in the program's order, by a part of the
        kernel's name.
      platforms: the platforms that the case is compiled for.
    """

    name: str
    function: Callable
    arguments: tuple[Array, ...]
    tokens: int
    flops: float = 0.0
    rival_of: str | None = None
    active: Mapping[str, float] = {}
    trips: Mapping[str, tuple[float, ...]] = {}
    platforms: tuple[str, ...] = ("tpu",)


def with_gradients(function: Callable, differentiated: int, others: int = 0) -> Callable:
    """A function that returns `function`'s outputs and gradients. It takes `differentiated` arguments,
    `others` without a gradient, and the cotangents of all outputs."""

    def both(*arguments):
        inputs, rest = arguments[:differentiated], arguments[differentiated:]
        outputs, vjp = jax.vjp(lambda *xs: function(*xs, *rest[:others]), *inputs)
        tree = jax.tree.structure(outputs)
        return outputs, vjp(jax.tree.unflatten(tree, rest[others:]))

    return both
