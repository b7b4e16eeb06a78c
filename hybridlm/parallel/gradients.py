"""Gradients of parameters on a mesh: devices sum their terms, and each keeps the shard that it updates.

Every device has the terms of its own tokens. Where XLA decides, it sums whole gradients on all
devices and then cuts each one's shard out (an all-reduce and a slice), which sends twice as much as a
reduce-scatter. So the products of kernels' gradients run in `jax.shard_map`.

libtpu 0.0.48 makes an all-reduce of a reduce-scatter over all chips of a slice of two or three
dimensions, but not of one along a dimension. The sum is therefore scattered in stages, one for each
dimension of the slice.
"""

import contextlib
import contextvars
import functools
import math
import types
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from hybridlm.parallel.axes import RULES, active_mesh_shape, spec

# Mesh axes whose devices have different tokens.
_TOKENS = (*RULES["batch"], *RULES["time"])


class _Sending(NamedTuple):
    """How devices send each other gradients.

    Attributes:
      dtype: of what is sent and added; None is the gradients' own.
      stages: of axes that scatter in several, the sizes of these, slowest dimension first.
    """

    dtype: jnp.dtype | None = None
    stages: Mapping[str, tuple[int, ...]] = types.MappingProxyType({})


_AS_THEY_ARE = _Sending()
_sending: contextvars.ContextVar[_Sending] = contextvars.ContextVar("sending", default=_AS_THEY_ARE)


@contextlib.contextmanager
def sent_over(
    mesh: Mesh, dtype: str, stages: Mapping[str, tuple[int, ...]] | None = None
) -> Iterator[None]:
    """While a step is traced: devices of `mesh` send each other gradients in `dtype`.

    `stages` are sizes for each mesh axis, whose product is the axis's; None takes those that suit the
    slice.
    """
    if stages is None:
        stages = {axis: _stages(mesh, axis) for axis in mesh.axis_names}
    token = _sending.set(_Sending(jnp.dtype(dtype), stages))
    try:
        yield
    finally:
        _sending.reset(token)


def over_tokens(
    product: Callable[[jax.Array, jax.Array], jax.Array],
    x_BTI: jax.Array,
    dy_BTO: jax.Array,
    axes: tuple[str | None, str | None],
) -> jax.Array:
    """`product(x, dy)`, (I, O): a sum over tokens of terms x_i dy_o, split as the kernel is.

    Args:
      product: gives that sum for the tokens that it is given.
      x_BTI, dy_BTO: a linear map's input and its output's cotangent. If they have other dimensions,
        or sizes that do not divide over the mesh, XLA decides.
      axes: logical axes of the kernel's dimensions.
    """
    mesh = active_mesh_shape()
    if mesh is None or not _divides(mesh, x_BTI, dy_BTO, axes):
        return product(x_BTI, dy_BTO)

    def local(x: jax.Array, dy: jax.Array) -> jax.Array:
        return _summed(product(x, dy), axes)

    return jax.shard_map(
        local,
        in_specs=(spec(("batch", "time", None)),) * 2,
        out_specs=PartitionSpec(*_splits(axes)),
        # XLA decides on `tensor`, whose devices have the same tokens.
        axis_names=set(_TOKENS if mesh["tensor"] > 1 else mesh),
        check_vma=False,
    )(x_BTI, dy_BTO)


def gathered(shard: jax.Array, size: int, dtype: jnp.dtype) -> jax.Array:
    """Inside `shard_map`: the whole of a parameter whose first dimension, `embed`, may be split.

    Args:
      shard: float32. size: of the whole's first dimension.
      dtype: in which devices send it; the result has been rounded to it, and is float32 again.
    """
    return shard if shard.shape[0] == size else _gather(dtype, shard)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather(dtype, shard):
    whole = jax.lax.all_gather(shard.astype(dtype), RULES["embed"], tiled=True)
    return whole.astype(shard.dtype)


def _gather_forward(dtype, shard):
    return _gather(dtype, shard), None


def _gather_backward(dtype, _, d_whole):
    del dtype  # `shard_map` sums over the axes that do not split the parameter
    return (_scattered(d_whole, 0, RULES["embed"]),)


_gather.defvjp(_gather_forward, _gather_backward)


def _summed(terms: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """Inside `shard_map`: this device's shard of the sum of all devices' `terms`, of whole shape."""
    split = _splits(axes)
    for dimension, names in enumerate(split):
        terms = _scattered(terms, dimension, names)
    left = tuple(
        axis
        for axis in _TOKENS
        if jax.lax.axis_size(axis) > 1 and not any(axis in names for names in split)
    )
    if not left:
        return terms
    return jax.lax.psum(terms.astype(_sending.get().dtype or terms.dtype), left).astype(terms.dtype)


def _scattered(terms: jax.Array, dimension: int, names: tuple[str, ...]) -> jax.Array:
    """The sum of `terms` over mesh axes, scattered along `dimension` as a sharding by `names` is."""
    sending = _sending.get()
    sent = terms.astype(sending.dtype or terms.dtype)
    for axis in names:
        size = jax.lax.axis_size(axis)
        for groups in _groups(sending.stages.get(axis, (size,))) if size > 1 else ():
            sent = jax.lax.psum_scatter(
                sent, axis, scatter_dimension=dimension, axis_index_groups=groups, tiled=True
            )
    return sent.astype(terms.dtype)


def _groups(stages: tuple[int, ...]) -> list[list[list[int]] | None]:
    """For each stage, the indices along a mesh axis that scatter among each other; None for all."""
    if len(stages) == 1:
        return [None]
    indices = np.arange(math.prod(stages)).reshape(stages)
    return [
        np.moveaxis(indices, stage, -1).reshape(-1, size).tolist()
        for stage, size in enumerate(stages)
    ]


def _stages(mesh: Mesh, axis: str) -> tuple[int, ...]:
    """The sizes of the box of chips that the devices along a mesh axis fill row by row, or their number."""
    line = np.moveaxis(mesh.devices, mesh.axis_names.index(axis), -1).reshape(-1, mesh.shape[axis])
    whole = (mesh.shape[axis],)
    if line[0][0].platform != "tpu":
        return whole
    coords = np.array([device.coords for device in line[0]])
    sizes = coords.max(0) - coords.min(0) + 1
    rows = np.indices(sizes).reshape(len(sizes), -1).T
    if rows.shape != coords.shape or (rows != coords - coords.min(0)).any():
        return whole
    return tuple(int(size) for size in sizes if size > 1) or whole


def _splits(axes: tuple[str | None, ...]) -> list[tuple[str, ...]]:
    """For each dimension of a parameter, the mesh axes that split it and split tokens too."""
    return [tuple(a for a in RULES.get(name, ()) if a in _TOKENS) for name in axes]


def _divides(mesh: Mapping[str, int], x: jax.Array, dy: jax.Array, axes: tuple) -> bool:
    if math.prod(mesh[axis] for axis in _TOKENS) == 1 or x.ndim != 3:
        return False
    sizes = (*x.shape, dy.shape[-1])
    split = (RULES["batch"], RULES["time"], *_splits(axes))
    return all(
        size % math.prod(mesh[axis] for axis in names) == 0
        for size, names in zip(sizes, split, strict=True)
    )
