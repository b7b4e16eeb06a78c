"""What an op tells the scorecard about a kernel: a call at representative shapes, as data."""

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
      name: unique; what the scorecard's row is called.
      function: takes arrays, traced for the chip's platform with kernels on.
      arguments: shapes and dtypes of its arrays.
      tokens: what bundles are divided by: B * T * H, a token of one head.
      flops: of the call, model FLOPs (a multiply-add is 2) of what its pairs or states need.
      rival_of: the name of the case that this one of another project stands beside.
      active: for kernels by a part of their name, the share of grid steps at which regions run
        that data decides about; 1 where not stated.
      trips: for kernels by a part of their name, the mean trip counts of loops that depend on
        data, in the program's order.
      platforms: those that the case is compiled for.
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
    """`function` and its gradients, of `differentiated` arguments, `others` that get none, and the
    cotangents of all its outputs."""

    def both(*arguments):
        inputs, rest = arguments[:differentiated], arguments[differentiated:]
        outputs, vjp = jax.vjp(lambda *xs: function(*xs, *rest[:others]), *inputs)
        tree = jax.tree.structure(outputs)
        return outputs, vjp(jax.tree.unflatten(tree, rest[others:]))

    return both
