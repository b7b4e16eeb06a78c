"""The dtype of activations and matrix products."""

import jax
import jax.numpy as jnp


def compute_dtype(name: str, platform: str | None = None) -> jnp.dtype:
    """The dtype that the setting `train.dtype` means on a platform.

    Args:
      name: "float32", "bfloat16", or "auto": float32 on CPUs and bfloat16 elsewhere.
      platform: "cpu", "gpu" or "tpu"; None is jax's default backend.
    """
    if name == "auto":
        name = "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"
    return jnp.dtype(name)
