"""Settings of the mesh."""

import dataclasses
from typing import Annotated

from hybridlm.settings.bounds import AtLeast, settings
from hybridlm.settings.reader import require

Devices = Annotated[int, AtLeast(1, also=-1)]


@settings
class MeshConfig:
    """Devices along each axis of the mesh; -1 (at most once) takes all remaining devices.

    Attributes:
      data: devices that split the batch; each has a copy of all parameters.
      fsdp: devices that split the batch, the parameters and the optimizer state; each layer gathers
        its parameters before use (ZeRO-3, arXiv 1910.02054).
      tensor: devices that split heads, MLPs and vocabulary (Megatron-LM, arXiv 1909.08053).
      context: devices that split the time of each sequence (context parallelism).
      expert: devices that split the experts of mixtures of experts; all else they split as those of
        `fsdp` do (GShard, arXiv 2006.16668).
    """

    data: Devices = -1
    fsdp: Devices = 1
    tensor: Devices = 1
    context: Devices = 1
    expert: Devices = 1

    def __post_init__(self):
        free = [name for name, size in dataclasses.asdict(self).items() if size == -1]
        require(len(free) <= 1, free[-1] if free else "data", "is -1, and so is another axis")
