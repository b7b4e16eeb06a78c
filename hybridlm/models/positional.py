"""Rotary position embedding, whole or partial (arXiv 2104.09864)."""

import dataclasses

import jax
import jax.numpy as jnp

from hybridlm.dataclass_reader import require


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """RoPE's settings.

    Attributes:
      theta: base of the wavelengths 2 pi theta^(2i / rotated size).
      fraction: share of each head that is rotated, from its first dimension on.
    """

    theta: float = 10_000.0
    fraction: float = 1.0

    def __post_init__(self):
        require(self.theta > 0, "theta", f"must be positive, not {self.theta}")
        require(0 < self.fraction <= 1, "fraction", f"must lie in (0, 1], not {self.fraction}")

    def rotated(self, head_dim: int) -> int:
        """How many dimensions of a head are rotated."""
        return round(head_dim * self.fraction)


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
        angles_BT1F = positions_BT[:, :, None, None] * frequencies[None, None, None, :]
        cos, sin = (
            jnp.cos(angles_BT1F).astype(x_BTHK.dtype),
            jnp.sin(angles_BT1F).astype(x_BTHK.dtype),
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
