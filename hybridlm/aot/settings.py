"""The settings of `hybridlm compile`."""

import pathlib

from hybridlm.settings.bounds import NonNegativeInt, PositiveInt, settings


@settings
class CompileSettings:
    """What is compiled, and for which chips.

    Attributes:
      config: recipe: file.py or file.py:argument.
      topology: chip:shape, e.g. v5e:4x4, v5p:8x8x8, h100:8.
      slices: how many of that topology.
      out: folder for report.json and the compiled step.
      largest: how many instructions are listed by the bytes that they move through HBM.
    """

    config: str
    topology: str
    slices: PositiveInt = 1
    out: pathlib.Path | None = None
    largest: NonNegativeInt = 0
