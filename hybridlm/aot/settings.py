"""The settings of `hybridlm compile`."""

import dataclasses
import pathlib

from hybridlm.settings.reader import require


@dataclasses.dataclass(frozen=True)
class CompileSettings:
    """What is compiled, and for which chips.

    Attributes:
      config: recipe: file.py or file.py:argument.
      topology: chip:shape, e.g. v5e:4x4, v5p:8x8x8, h100:8.
      slices: how many of that topology.
      out: folder for report.json and the compiled step.
    """

    config: str
    topology: str
    slices: int = 1
    out: pathlib.Path | None = None

    def __post_init__(self):
        require(self.slices >= 1, "slices", f"must be at least 1, not {self.slices}")
