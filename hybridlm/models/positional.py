"""Rotary position embedding, full or partial (arXiv 2104.09864), and logit scaling by position."""

import dataclasses
import math
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from hybridlm.models.norms import at_least_float32
from hybridlm.settings.bounds import Above, AtLeast, Between, PositiveFloat, PositiveInt, settings
from hybridlm.settings.reader import require


@settings
class YarnConfig:
    """YaRN (arXiv 2309.00071): a model trained on `length` tokens reads `factor` times as many.

    Dimensions that rotate more than `fast` times within `length` keep their frequency; for those
    that rotate less than `slow` times it is divided by `factor`, with a linear ramp in between.
    Queries and keys are each multiplied by 0.1 ln(factor) + 1.

    Attributes:
      factor: the new context length divided by that of training (the paper's s).
      length: context length of training, in tokens.
      fast: rotations within `length` above which a frequency is kept (the paper's beta).
      slow: rotations within `length` below which a frequency is divided by `factor` (the paper's
        alpha); smaller than `fast`.
    """

    factor: Annotated[float, AtLeast(1)]
    length: PositiveInt
    fast: PositiveFloat = 32.0
    slow: PositiveFloat = 1.0

    def __post_init__(self):
        require(self.slow < self.fast, "slow", f"must be below fast {self.fast}, not {self.slow}")

    @property
    def magnitude(self) -> float:
        """The factor on rotated queries and keys."""
        return 0.1 * math.log(self.factor) + 1

    def frequency_factors(self, theta: float, rotated: int) -> np.ndarray:
        """The factors on the frequencies theta^(-2i / rotated), (rotated / 2,) float64."""

        def dimension(turns: float) -> float:
            """The i whose frequency makes `turns` rotations within `length` tokens."""
            return rotated * math.log(self.length / (turns * 2 * math.pi)) / (2 * math.log(theta))

        first = max(math.floor(dimension(self.fast)), 0)
        last = min(math.ceil(dimension(self.slow)), rotated - 1)
        index = np.arange(rotated // 2)
        ramp = np.clip((index - first) / max(last - first, 0.001), 0, 1)  # 0: kept, 1: divided
        return (1 - ramp) + ramp / self.factor


@settings
class RopeConfig:
    """Settings of RoPE.

    Attributes:
      theta: base of the wavelengths 2 pi theta^(2i / rotated size).
      fraction: share of each head's dimensions that is rotated, from the first dimension.
      yarn: settings of YaRN for contexts longer than in training, or None.
    """

    theta: PositiveFloat = 10_000.0
    fraction: Annotated[float, Between(0, 1, low_open=True)] = 1.0
    yarn: YarnConfig | None = None

    def __post_init__(self):
        require(
            self.yarn is None or self.theta > 1,
            "theta",
            f"must be above 1 with yarn, which divides by its logarithm, not {self.theta}",
        )

    def rotated(self, head_dim: int) -> int:
        """The number of rotated dimensions of a head."""
        return round(head_dim * self.fraction)


def check_rope(rope: RopeConfig | None, head_dim: int) -> None:
    """Raises `Invalid` for field "rope" unless an even number of dimensions is rotated."""
    rotated = 2 if rope is None else rope.rotated(head_dim)
    require(
        rotated >= 2 and rotated % 2 == 0,
        "rope",
        f"rotates {rotated} of {head_dim} dimensions: it needs an even number, at least 2",
    )


class Rope:
    """Rotates the pairs (x_i, x_{i + R/2}) of each head's first R dimensions by the position."""

    def __init__(self, config: RopeConfig, head_dim: int):
        self.config = config
        self.rotated = config.rotated(head_dim)

    def __call__(self, x_BTHK: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """x has any float dtype, positions int32; angles are computed in float32."""
        half = self.rotated // 2
        exponents = jnp.arange(half, dtype=jnp.float32) / half
        frequencies = jnp.power(jnp.float32(self.config.theta), -exponents)
        yarn, magnitude = self.config.yarn, 1.0
        if yarn is not None:
            factors = yarn.frequency_factors(self.config.theta, self.rotated)
            frequencies *= factors.astype(np.float32)
            magnitude = yarn.magnitude
        angles_BT1F = positions_BT[:, :, None, None] * frequencies[None, None, None, :]
        cos, sin = (
            (magnitude * jnp.cos(angles_BT1F)).astype(x_BTHK.dtype),
            (magnitude * jnp.sin(angles_BT1F)).astype(x_BTHK.dtype),
        )
        x1, x2, rest = jnp.split(x_BTHK, [half, 2 * half], axis=-1)
        return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest], axis=-1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rope) and (self.config, self.rotated) == (
            other.config,
            other.rotated,
        )

    def __hash__(self) -> int:
        return hash((self.config, self.rotated))


def no_rope(x_BTHK: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """NoPE: attention without positions."""
    del positions_BT
    return x_BTHK


def halves_from_pairs(rotated: int) -> np.ndarray:
    """The permutation from a model that rotates neighbours (x_2i, x_2i+1) to this layout.

    `kernel[..., halves_from_pairs(R)]`, applied to the R rotated dimensions of the query and key
    projections, converts the weights of such a model (Llama 4, DeepSeek). Queries and keys are
    permuted in the same way, so the logits do not change.
    """
    return np.concatenate([np.arange(0, rotated, 2), np.arange(1, rotated, 2)])


@settings
class TemperatureConfig:
    """A factor on the logits that grows with the query's position p.

    The factor is 1 + strength log(1 + p / scale). With strength 1 / log(scale) it equals
    log_scale(scale + p), which SWAN-GPT (arXiv 2504.08719) and HyPE (arXiv 2601.22156) use on NoPE
    layers beyond the training length. It has no parameters and can be set only for evaluation.

    Attributes:
      scale: number of positions over which the factor changes little.
      strength: weight of the logarithm; None means 1 / log(scale).
      steps: replace p / scale by floor((p + 1) / scale); with strength 0.1 and scale 8192 this is
        the rule of Llama 4's NoPE layers.
    """

    scale: Annotated[float, Above(1)]
    strength: PositiveFloat | None = None
    steps: bool = False


@dataclasses.dataclass(frozen=True)
class Temperature:
    """Multiplies each query by the factor of its position."""

    config: TemperatureConfig

    def __call__(self, q_BTHK: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """q has any float dtype, positions int32; the factor is at least float32."""
        scale, strength = self.config.scale, self.config.strength or 1 / math.log(self.config.scale)
        positions_BT = positions_BT.astype(jnp.promote_types(q_BTHK.dtype, jnp.float32))
        spans_BT = positions_BT / scale
        if self.config.steps:
            spans_BT = jnp.floor((positions_BT + 1) / scale)
        factor_BT11 = (1 + strength * jnp.log1p(spans_BT))[:, :, None, None]
        return (at_least_float32(q_BTHK) * factor_BT11).astype(q_BTHK.dtype)


def no_temperature(q_BTHK: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """Leaves logits independent of the position."""
    del positions_BT
    return q_BTHK
