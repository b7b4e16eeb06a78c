"""How the frequencies of RoPE are changed for contexts longer than those of training."""

import math
from typing import Annotated

import numpy as np

from hybridlm.settings.bounds import AtLeast, Between, PositiveFloat, PositiveInt, settings
from hybridlm.settings.reader import require


@settings
class YarnConfig:
    """YaRN (arXiv 2309.00071): a model trained on `length` tokens reads `factor` times as many.

    Dimensions that rotate more than `fast` times within `length` keep their frequency; for those
    that rotate less than `slow` times it is divided by `factor`, with a linear ramp in between.
    Queries and keys are each multiplied by 0.1 ln(factor) + 1, or by `attention`.

    Attributes:
      factor: the new context length divided by that of training (the paper's s).
      length: context length of training, in tokens.
      fast: rotations within `length` above which a frequency is kept (the paper's beta).
      slow: rotations within `length` below which a frequency is divided by `factor` (the paper's
        alpha); smaller than `fast`.
      attention: the factor on queries and on keys; None is the paper's 0.1 ln(factor) + 1.
      truncate: round the two ends of the ramp to whole dimensions; gpt-oss does not.
    """

    factor: Annotated[float, AtLeast(1)]
    length: PositiveInt
    fast: PositiveFloat = 32.0
    slow: PositiveFloat = 1.0
    attention: PositiveFloat | None = None
    truncate: bool = True

    def __post_init__(self):
        require(self.slow < self.fast, "slow", f"must be below fast {self.fast}, not {self.slow}")

    @property
    def magnitude(self) -> float:
        """The factor on rotated queries and keys."""
        return 0.1 * math.log(self.factor) + 1 if self.attention is None else self.attention

    def frequency_factors(self, theta: float, rotated: int) -> np.ndarray:
        """The factors on the frequencies theta^(-2i / rotated), (rotated / 2,) float64."""

        def dimension(turns: float) -> float:
            """The i whose frequency makes `turns` rotations within `length` tokens."""
            return rotated * math.log(self.length / (turns * 2 * math.pi)) / (2 * math.log(theta))

        first, last = dimension(self.fast), dimension(self.slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, rotated - 1)
        index = np.arange(rotated // 2)
        ramp = np.clip((index - first) / max(last - first, 0.001), 0, 1)  # 0: kept, 1: divided
        return (1 - ramp) + ramp / self.factor


@settings
class Llama3RopeConfig:
    """Llama 3.1's change of frequencies (arXiv 2407.21783; its published code).

    Frequencies that rotate more than `high` times within `length` are kept, those that rotate less
    than `low` times are divided by `factor`, with a linear ramp over the number of rotations in
    between. Where `low` is `high` (Llama 4 Scout) there is no ramp.

    Attributes:
      factor: what the lowest frequencies are divided by.
      length: context length before the change, in tokens.
      low: rotations within `length` below which a frequency is divided by `factor`.
      high: rotations within `length` above which a frequency is kept; at least `low`.
    """

    factor: Annotated[float, AtLeast(1)]
    length: PositiveInt
    low: PositiveFloat = 1.0
    high: PositiveFloat = 4.0

    def __post_init__(self):
        require(self.low <= self.high, "low", f"must be at most high {self.high}, not {self.low}")

    @property
    def magnitude(self) -> float:
        """The factor on rotated queries and keys."""
        return 1.0

    def frequency_factors(self, theta: float, rotated: int) -> np.ndarray:
        """The factors on the frequencies theta^(-2i / rotated), (rotated / 2,) float64."""
        frequencies = theta ** (-2 * np.arange(rotated // 2) / rotated)
        turns = self.length * frequencies / (2 * math.pi)
        if self.low == self.high:
            kept = np.where(turns < self.low, 0.0, 1.0)
        else:
            kept = np.clip((turns - self.low) / (self.high - self.low), 0, 1)
        return kept + (1 - kept) / self.factor


@settings
class LinearRopeConfig:
    """Position interpolation (arXiv 2306.15595): all frequencies are divided by `factor`.

    Attributes:
      factor: the new context length divided by that of training.
    """

    factor: Annotated[float, AtLeast(1)]

    @property
    def magnitude(self) -> float:
        """The factor on rotated queries and keys."""
        return 1.0

    def frequency_factors(self, theta: float, rotated: int) -> np.ndarray:
        """The factors on the frequencies, (rotated / 2,) float64."""
        del theta
        return np.full(rotated // 2, 1 / self.factor)


@settings
class KeptRopeConfig:
    """Gemma 4's "proportional" RoPE: the fastest frequencies are kept, the others are 0.

    Unlike RoPE over a part of a head, pairs are those of the whole head and frequencies are spaced
    over the whole head.

    Attributes:
      fraction: share of the head's pairs that rotate.
      factor: what the kept frequencies are divided by.
    """

    fraction: Annotated[float, Between(0, 1)]
    factor: Annotated[float, AtLeast(1)] = 1.0

    @property
    def magnitude(self) -> float:
        """The factor on rotated queries and keys."""
        return 1.0

    def frequency_factors(self, theta: float, rotated: int) -> np.ndarray:
        """The factors on the frequencies, (rotated / 2,) float64."""
        del theta
        kept = int(self.fraction * rotated // 2)
        return np.where(np.arange(rotated // 2) < kept, 1 / self.factor, 0.0)
