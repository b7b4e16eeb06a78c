"""Rotary position embedding, full or partial (arXiv 2104.09864), and logit scaling by position."""

import dataclasses
import math
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np

from hybridlm.models.norms import at_least_float32
from hybridlm.models.rope_scaling import (
    KeptRopeConfig,
    LinearRopeConfig,
    Llama3RopeConfig,
    YarnConfig,
)
from hybridlm.settings.bounds import Above, Between, PositiveFloat, settings
from hybridlm.settings.reader import require


@settings
class RopeConfig:
    """Settings of RoPE.

    Attributes:
      theta: base of the wavelengths 2 pi theta^(2i / rotated size).
      fraction: share of each head's dimensions that is rotated, from the first dimension.
      yarn: settings of YaRN for contexts longer than in training, or None.
      llama3: settings of Llama 3.1's change of frequencies, or None.
      linear: settings of position interpolation, or None.
      interleaved: rotate neighbours (x_2i, x_2i+1) instead of halves (x_i, x_{i + R/2}), as in
        DeepSeek-V3.
      kept: settings of Gemma 4's RoPE, which keeps the fastest frequencies, or None; one of yarn,
        llama3, linear and kept at most.
    """

    theta: PositiveFloat = 10_000.0
    fraction: Annotated[float, Between(0, 1, low_open=True)] = 1.0
    yarn: YarnConfig | None = None
    llama3: Llama3RopeConfig | None = None
    linear: LinearRopeConfig | None = None
    interleaved: bool = False
    kept: KeptRopeConfig | None = None

    def __post_init__(self):
        given = [n for n in ("yarn", "llama3", "linear", "kept") if getattr(self, n) is not None]
        require(
            len(given) <= 1,
            given[-1] if given else "yarn",
            f"goes without {given[0] if given else None}",
        )
        require(
            self.yarn is None or self.theta > 1,
            "theta",
            f"must be above 1 with yarn, which divides by its logarithm, not {self.theta}",
        )

    @property
    def scaling(self) -> YarnConfig | Llama3RopeConfig | LinearRopeConfig | KeptRopeConfig | None:
        """What changes the frequencies, or None."""
        return self.yarn or self.llama3 or self.linear or self.kept

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
    """Rotates pairs of each head's first R dimensions by the position: halves, or neighbours."""

    def __init__(self, config: RopeConfig, head_dim: int):
        self.config = config
        self.rotated = config.rotated(head_dim)

    def __call__(self, x_BTHK: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """x has any float dtype, positions int32; angles are computed in float32."""
        half = self.rotated // 2
        exponents = jnp.arange(half, dtype=jnp.float32) / half
        frequencies = jnp.power(jnp.float32(self.config.theta), -exponents)
        scaling, magnitude = self.config.scaling, 1.0
        if scaling is not None:
            factors = scaling.frequency_factors(self.config.theta, self.rotated)
            frequencies *= factors.astype(np.float32)
            magnitude = scaling.magnitude
        angles_BT1F = positions_BT[:, :, None, None] * frequencies[None, None, None, :]
        cos, sin = (
            (magnitude * jnp.cos(angles_BT1F)).astype(x_BTHK.dtype),
            (magnitude * jnp.sin(angles_BT1F)).astype(x_BTHK.dtype),
        )
        if self.config.interleaved:
            rotated, rest = jnp.split(x_BTHK, [2 * half], axis=-1)
            x1, x2 = rotated[..., 0::2], rotated[..., 1::2]
            pairs = jnp.stack([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
            return jnp.concatenate([pairs.reshape(rotated.shape), rest], axis=-1)
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
      steps: True replaces p / scale by floor((p + 1) / scale); with strength 0.1 and scale 8192 this
        is the rule of Llama 4's NoPE layers. "from_zero" replaces it by floor(p / scale), the rule of
        Ministral 3.
    """

    scale: Annotated[float, Above(1)]
    strength: PositiveFloat | None = None
    steps: bool | Literal["from_zero"] = False


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
            first = 0 if self.config.steps == "from_zero" else 1
            spans_BT = jnp.floor((positions_BT + first) / scale)
        factor_BT11 = (1 + strength * jnp.log1p(spans_BT))[:, :, None, None]
        return (at_least_float32(q_BTHK) * factor_BT11).astype(q_BTHK.dtype)


def no_temperature(q_BTHK: jax.Array, positions_BT: jax.Array) -> jax.Array:
    """Leaves logits independent of the position."""
    del positions_BT
    return q_BTHK
