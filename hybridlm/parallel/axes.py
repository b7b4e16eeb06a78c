"""The table that maps logical axes to mesh axes, and the active mesh."""

from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, PartitionSpec

AXES = ("data", "fsdp", "tensor", "context", "expert")

# Logical axis of an array dimension -> mesh axes that it is split over. Other axes are not split.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp", "expert"),
    "time": ("context",),
    "embed": ("fsdp", "expert"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "experts": ("expert",),
    "expert_embed": ("fsdp",),  # `embed` of arrays that are split over experts, too
}


def spec(axes: Sequence[str | None]) -> PartitionSpec:
    """The PartitionSpec of an array whose dimensions have these logical names."""
    return PartitionSpec(*(RULES.get(name) if name else None for name in axes))


def active_mesh_shape() -> Mapping[str, int] | None:
    """Devices along `AXES`; None without a mesh of several devices, and inside `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.axis_names != AXES or mesh.size == 1 or set(mesh.axis_types) != {AxisType.Auto}:
        return None
    return mesh.shape


def split_over_batch(x: jax.Array, *, rest_whole: bool = True) -> jax.Array:
    """Constrains x (B, T, ...) to be split over batch and time on the active mesh.

    Without the constraint XLA leaves the parameters split and gathers the activations of the whole
    batch. With it XLA gathers the parameters of each layer before use, as FSDP requires.

    Args:
      rest_whole: the other dimensions are not split; False lets XLA decide on them (heads).
    """
    if active_mesh_shape() is None:
        return x
    rest = None if rest_whole else PartitionSpec.UNCONSTRAINED
    split = PartitionSpec(*spec(("batch", "time")), *(rest,) * (x.ndim - 2))
    return jax.lax.with_sharding_constraint(x, split)
