"""The activation of a convolution's sums, in their own dtype, for all forms but the reference."""

import jax

ACTIVATIONS = (None, "silu")


def activated(sums, activation: str | None):
    """The activation of `sums`; None leaves them as they are."""
    return sums if activation is None else jax.nn.silu(sums)


def of_sums(sums, dy, activation: str | None):
    """The gradient of `sums`, from the gradient `dy` of their activation."""
    if activation is None:
        return dy
    (gradient,) = jax.vjp(jax.nn.silu, sums)[1](dy)
    return gradient
