"""The device mesh, and the shardings of parameters and batches."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hybridlm.errors import ConfigError
from hybridlm.parallel.axes import AXES, RULES, spec
from hybridlm.parallel.settings import MeshConfig


def mesh_shape(config: MeshConfig, device_count: int) -> tuple[int, ...]:
    """Devices along `AXES`, with -1 replaced.

    Raises:
      ConfigError: if the product of the axes is not the number of devices.
    """
    sizes = {name: getattr(config, name) for name in AXES}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if device_count % fixed:
        raise ConfigError(f"mesh needs a multiple of {fixed} devices, but there are {device_count}")
    free = device_count // fixed
    shape = tuple(free if size == -1 else size for size in sizes.values())
    if math.prod(shape) != device_count:
        text = " x ".join(f"{n} {s}" for n, s in zip(AXES, shape))
        raise ConfigError(
            f"mesh {text} has {math.prod(shape)} devices, but there are {device_count}: set one"
            " axis to -1 to use all"
        )
    return shape


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh with axes `AXES` over all devices (or `devices`); XLA decides on the sharding.

    TPU slices are placed along `data`, so that only gradients are sent from slice to slice.

    Raises:
      ConfigError: if the product of the axes is not the number of devices, or the number of slices
        does not divide `data`.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(config, len(devices))
    slices = _by_slice(devices)
    data, *others = shape
    if data % len(slices):
        raise ConfigError(
            f"mesh.data {data} does not divide over the {len(slices)} slices; only the data axis may"
            f" span slices: use a multiple of {len(slices)}"
        )
    grids = [_grid(of_slice, (data // len(slices), *others)) for of_slice in slices]
    return Mesh(np.concatenate(grids), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _by_slice(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """The devices of each TPU slice; one group elsewhere (JAX calls a GPU host a slice)."""
    found: dict[int, list[jax.Device]] = {}
    for device in devices:
        # A single slice of a topology description has no index.
        index = getattr(device, "slice_index", 0) if device.platform == "tpu" else 0
        found.setdefault(index, []).append(device)
    return [found[index] for index in sorted(found)]


def _grid(devices: list[jax.Device], shape: tuple[int, ...]) -> np.ndarray:
    """Places neighbours in the mesh next to each other in the slice's torus where possible.

    The devices of a single axis stand row by row, because gradients are scattered along rows
    (`hybridlm.parallel.gradients`); jax would place 16 chips of v5e on a ring.
    """
    if devices[0].platform != "tpu":
        return np.array(devices).reshape(shape)
    if max(shape) == len(devices):
        in_rows = sorted(devices, key=lambda device: (*device.coords, device.core_on_chip))
        return np.array(in_rows).reshape(shape)
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


class ShardedSize(NamedTuple):
    """A setting whose value the mesh must split evenly.

    Attributes:
      key: the setting, e.g. "data.seq_len".
      size: its value.
      axis: the logical axis that is split, a key of `RULES`.
      split_by: the mesh axes and settings that split it, for the error.
      parts: equal parts that it is cut into before the mesh splits it.
    """

    key: str
    size: int
    axis: str
    split_by: str
    parts: int = 1


def check_divides(sizes: Iterable[ShardedSize], shape: Sequence[int]) -> None:
    """Checks that a mesh of `shape` splits all sizes evenly.

    Raises:
      ConfigError: names the first setting that does not divide, and the nearest sizes that do.
    """
    devices = dict(zip(AXES, shape))
    for key, size, axis, split_by, parts in sizes:
        shards = math.prod(devices[name] for name in RULES[axis]) * parts
        if size % shards:
            below, above = size // shards * shards, -(-size // shards) * shards
            fits = " or ".join(str(s) for s in (below, above) if s)
            raise ConfigError(
                f"{key} {size} does not divide over {shards} shards ({split_by}): use {fits}"
            )


def shardings(mesh: Mesh, abstract: Any, axes: Any) -> Any:
    """A NamedSharding for each parameter.

    Args:
      mesh: from `make_mesh`.
      abstract: nested dict of shapes.
      axes: logical names of the dimensions, tuples in the same nesting.

    Raises:
      ConfigError: if a dimension does not divide over its mesh axes; names the next that does.
    """

    def one(path: Any, shape: jax.ShapeDtypeStruct, names: tuple[str, ...]) -> NamedSharding:
        for size, name in zip(shape.shape, names):
            ways = math.prod(mesh.shape[axis] for axis in RULES.get(name, ()))
            if size % ways:
                raise ConfigError(
                    f"parameter {jax.tree_util.keystr(path, simple=True, separator='/')} has"
                    f" size {size} along {name!r}, which does not divide over the {ways} devices of"
                    f" mesh axis {'+'.join(RULES[name])}: use {-(-size // ways) * ways}"
                )
        return NamedSharding(mesh, spec(names))

    return jax.tree_util.tree_map_with_path(
        one, abstract, axes, is_leaf=lambda x: isinstance(x, jax.ShapeDtypeStruct)
    )


def sharding(mesh: Mesh, axes: Sequence[str | None]) -> NamedSharding:
    """The sharding of an array whose dimensions have these logical names."""
    return NamedSharding(mesh, spec(axes))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of batches (accumulate, batch, time)."""
    return sharding(mesh, (None, "batch", "time"))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that copies an array to every device."""
    return NamedSharding(mesh, PartitionSpec())
