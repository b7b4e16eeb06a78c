"""The settings of the mesh."""

import dataclasses

from hybridlm.settings.reader import require


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; -1 (at most once) takes all that are left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1

    def __post_init__(self):
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            require(size >= 1 or size == -1, name, f"must be at least 1, or -1, not {size}")
        free = [name for name, size in sizes.items() if size == -1]
        require(len(free) <= 1, free[-1] if free else "data", "is -1, and so is another axis")
