"""The device mesh, and where it puts parameters and batches."""

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
    """Devices along `AXES`, -1 filled in.

    Raises:
      ConfigError: where the axes do not multiply to the number of devices.
    """
    sizes = {name: getattr(config, name) for name in AXES}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if device_count % fixed:
        raise ConfigError(
            f"mesh asks for a multiple of {fixed} devices, and there are {device_count}"
        )
    free = device_count // fixed
    shape = tuple(free if size == -1 else size for size in sizes.values())
    if math.prod(shape) != device_count:
        text = " x ".join(f"{n} {s}" for n, s in zip(AXES, shape))
        raise ConfigError(
            f"mesh {text} has {math.prod(shape)} devices, and there are {device_count}: set one"
            " axis to -1 to take all"
        )
    return shape


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices (or `devices`), its axes `AXES`, sharding decided by XLA.

    Several slices of TPUs are laid along `data`: between them only gradients pass.

    Raises:
      ConfigError: where the axes do not multiply to the number of devices, or `data` does not
        divide over the slices.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(config, len(devices))
    slices = _by_slice(devices)
    data, *others = shape
    if data % len(slices):
        raise ConfigError(
            f"mesh.data {data} does not divide over the {len(slices)} slices that there are, and"
            f" nothing else may reach from one to another: use a multiple of {len(slices)}"
        )
    grids = [_grid(of_slice, (data // len(slices), *others)) for of_slice in slices]
    return Mesh(np.concatenate(grids), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _by_slice(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """The devices of each slice of TPUs; all of them elsewhere (jax calls a GPU host a slice)."""
    found: dict[int, list[jax.Device]] = {}
    for device in devices:
        # A described slice that is alone has no index.
        index = getattr(device, "slice_index", 0) if device.platform == "tpu" else 0
        found.setdefault(index, []).append(device)
    return [found[index] for index in sorted(found)]


def _grid(devices: list[jax.Device], shape: tuple[int, ...]) -> np.ndarray:
    """Where neighbours in the mesh are neighbours in the slice's torus, as far as it goes."""
    if devices[0].platform != "tpu":
        return np.array(devices).reshape(shape)
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


class Split(NamedTuple):
    """A number that the mesh splits evenly, or refuses.

    Attributes:
      key: the setting that holds it, e.g. "data.seq_len".
      size: its value.
      axis: the logical axis that is split, of `RULES`.
      parts: how many more equal parts it is cut into beforehand.
      what: what splits it, in words.
    """

    key: str
    size: int
    axis: str
    what: str
    parts: int = 1


def check_divides(splits: Iterable[Split], shape: Sequence[int]) -> None:
    """Refuses sizes that a mesh of `shape` cannot split evenly, and proposes some that it can.

    Raises:
      ConfigError: naming the first setting that does not divide.
    """
    devices = dict(zip(AXES, shape))
    for key, size, axis, what, parts in splits:
        shards = math.prod(devices[name] for name in RULES[axis]) * parts
        if size % shards:
            below, above = size // shards * shards, -(-size // shards) * shards
            fits = " or ".join(str(s) for s in (below, above) if s)
            raise ConfigError(
                f"{key} {size} does not divide over {shards} shards ({what}): use {fits}"
            )


def shardings(mesh: Mesh, abstract: Any, axes: Any) -> Any:
    """A NamedSharding for each parameter.

    Args:
      mesh: from `make_mesh`.
      abstract: nested dict of shapes. axes: the same nesting, tuples of logical names.

    Raises:
      ConfigError: for a dimension that its mesh axes do not divide, with the nearest that does.
    """

    def one(path: Any, shape: jax.ShapeDtypeStruct, names: tuple[str, ...]) -> NamedSharding:
        for size, name in zip(shape.shape, names):
            ways = math.prod(mesh.shape[axis] for axis in RULES.get(name, ()))
            if size % ways:
                raise ConfigError(
                    f"parameter {jax.tree_util.keystr(path, simple=True, separator='/')} has"
                    f" {size} along {name!r}, which {ways} devices of mesh axis"
                    f" {'+'.join(RULES[name])} do not divide: use {-(-size // ways) * ways}"
                )
        return NamedSharding(mesh, spec(names))

    return jax.tree_util.tree_map_with_path(
        one, abstract, axes, is_leaf=lambda x: isinstance(x, jax.ShapeDtypeStruct)
    )


def sharding(mesh: Mesh, axes: Sequence[str | None]) -> NamedSharding:
    """Of an array whose dimensions have these logical names."""
    return NamedSharding(mesh, spec(axes))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of batches (accumulate, batch, time)."""
    return sharding(mesh, (None, "batch", "time"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())
