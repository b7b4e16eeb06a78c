"""Rotary position embedding, whole or partial (arXiv 2104.09864), and logits that grow with it."""

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

    Dimensions that turn more than `fast` times within `length` stay as they are, those that turn
    less than `slow` times are slowed down by `factor`, and between the two there is a ramp. Queries
    and keys are multiplied by 0.1 ln(factor) + 1 each.

    Attributes:
      factor: the new context length over that of training (the paper's s).
      length: context length of training, in tokens.
      fast: turns within `length` above which a frequency is kept (the paper's beta).
      slow: turns within `length` below which a frequency is divided by `factor` (the paper's
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
        """What rotated queries and keys are multiplied by."""
        return 0.1 * math.log(self.factor) + 1

    def slowed(self, theta: float, rotated: int) -> np.ndarray:
        """(rotated / 2,) float64, what each frequency theta^(-2i / rotated) is multiplied by."""

        def dimension(turns: float) -> float:
            """The i at which a frequency turns so often within `length` tokens."""
            return rotated * math.log(self.length / (turns * 2 * math.pi)) / (2 * math.log(theta))

        first = max(math.floor(dimension(self.fast)), 0)
        last = min(math.ceil(dimension(self.slow)), rotated - 1)
        index = np.arange(rotated // 2)
        share = np.clip((index - first) / max(last - first, 0.001), 0, 1)  # slowed altogether: 1
        return (1 - share) + share / self.factor


@settings
class RopeConfig:
    """RoPE's settings.

    Attributes:
      theta: base of the wavelengths 2 pi theta^(2i / rotated size).
      fraction: share of each head that is rotated, from its first dimension on.
      yarn: YaRN's settings for contexts longer than those of training, or None.
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
        """How many dimensions of a head are rotated."""
        return round(head_dim * self.fraction)


def check_rope(rope: RopeConfig | None, head_dim: int) -> None:
    """Raises `Invalid`, naming "rope", unless it rotates pairs of a head's dimensions."""
    rotated = 2 if rope is None else rope.rotated(head_dim)
    require(
        rotated >= 2 and rotated % 2 == 0,
        "rope",
        f"rotates {rotated} of {head_dim} dimensions: it needs an even number, at least 2",
    )


class Rope:
    """Rotates pairs (x_i, x_{i + R/2}) of the first R dimensions of each head by its position."""

    def __init__(self, config: RopeConfig, head_dim: int):
        self.config = config
        self.rotated = config.rotated(head_dim)

    def __call__(self, x_BTHK: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """x of any float dtype, positions int32; angles are computed in float32."""
        half = self.rotated // 2
        exponents = jnp.arange(half, dtype=jnp.float32) / half
        frequencies = jnp.power(jnp.float32(self.config.theta), -exponents)
        yarn, magnitude = self.config.yarn, 1.0
        if yarn is not None:
            frequencies *= yarn.slowed(self.config.theta, self.rotated).astype(np.float32)
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
    """Where each rotated dimension stands in a model that rotates neighbours (x_2i, x_2i+1).

    `kernel[..., halves_from_pairs(R)]`, applied to the R rotated dimensions of the queries' and of
    the keys' projections, turns such a model's weights (Llama 4, DeepSeek) into this one's: both
    are permuted alike, so every logit stays what it was.
    """
    return np.concatenate([np.arange(0, rotated, 2), np.arange(1, rotated, 2)])


@settings
class TemperatureConfig:
    """A factor on the logits that grows with the query's position p.

    1 + strength log(1 + p / scale). With strength 1 / log(scale) that is log_scale(scale + p), as
    SWAN-GPT (arXiv 2504.08719) and HyPE (arXiv 2601.22156) use it on NoPE layers beyond the length
    of training. It has no parameters and may be set for evaluation alone.

    Attributes:
      scale: positions over which the factor changes little.
      strength: weight of the logarithm; None is 1 / log(scale).
      steps: count whole multiples of `scale`, the first token being 1: floor((p + 1) / scale), with
        strength 0.1 and scale 8192 the rule of Llama 4's NoPE layers.
    """

    scale: Annotated[float, Above(1)]
    strength: PositiveFloat | None = None
    steps: bool = False


@dataclasses.dataclass(frozen=True)
class Temperature:
    """Multiplies each query by its position's factor."""

    config: TemperatureConfig

    def __call__(self, q_BTHK: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """q of any float dtype, positions int32; the factor is at least float32."""
        scale, strength = self.config.scale, self.config.strength or 1 / math.log(self.config.scale)
        positions_BT = positions_BT.astype(jnp.promote_types(q_BTHK.dtype, jnp.float32))
        spans_BT = positions_BT / scale
        if self.config.steps:
            spans_BT = jnp.floor((positions_BT + 1) / scale)
        factor_BT11 = (1 + strength * jnp.log1p(spans_BT))[:, :, None, None]
        return (at_least_float32(q_BTHK) * factor_BT11).astype(q_BTHK.dtype)


def no_temperature(q_BTHK: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """Logits that do not depend on the position."""
    del positions_BT
    return q_BTHK
