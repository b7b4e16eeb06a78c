"""The one table from logical axes to mesh axes, and the mesh in force."""

from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, PartitionSpec

AXES = ("data", "fsdp", "tensor", "context")

# Logical axis of an array dimension -> mesh axes it is split over. What is not named is whole.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "time": ("context",),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}


def spec(axes: Sequence[str | None]) -> PartitionSpec:
    """The PartitionSpec of an array whose dimensions have these logical names."""
    return PartitionSpec(*(RULES.get(name) if name else None for name in axes))


def mesh_in_force() -> Mapping[str, int] | None:
    """Devices along `AXES`; None without a mesh of several, and inside `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.axis_names != AXES or mesh.size == 1 or set(mesh.axis_types) != {AxisType.Auto}:
        return None
    return mesh.shape


def split_over_batch(x_BTD: jax.Array) -> jax.Array:
    """`x_BTD` held split over the batch (and time) by the mesh in force.

    Left alone XLA keeps the parameters split where they are and gathers activations of the whole
    batch; held so, it gathers a layer's parameters when they are needed, which is what FSDP means.
    """
    if mesh_in_force() is None:
        return x_BTD
    return jax.lax.with_sharding_constraint(x_BTD, spec(("batch", "time", None)))
