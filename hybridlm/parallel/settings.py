"""The settings of the mesh."""

import dataclasses
from typing import Annotated

from hybridlm.settings.bounds import AtLeast, settings
from hybridlm.settings.reader import require

Devices = Annotated[int, AtLeast(1, also=-1)]


@settings
class MeshConfig:
    """Devices along each axis of the mesh; -1 (at most once) takes all that are left.

    Attributes:
      data: devices that the batch is split over, each with a copy of all parameters.
      fsdp: devices that the batch and also parameters and optimizer state are split over; a layer's
        parameters are gathered where they are used (ZeRO-3, arXiv 1910.02054).
      tensor: devices that heads, MLPs and vocabulary are split over (Megatron-LM, arXiv 1909.08053).
      context: devices that the time of each sequence is split over (context parallelism).
    """

    data: Devices = -1
    fsdp: Devices = 1
    tensor: Devices = 1
    context: Devices = 1

    def __post_init__(self):
        free = [name for name, size in dataclasses.asdict(self).items() if size == -1]
        require(len(free) <= 1, free[-1] if free else "data", "is -1, and so is another axis")
