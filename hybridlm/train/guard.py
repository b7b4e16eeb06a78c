"""Which updates are taken: never a non-finite one, and on request no spike either."""

import jax
import jax.numpy as jnp

MEMORY = 0.98  # of the running mean and square of accepted gradient norms, about 50 steps
WARM_UP = 20  # accepted updates before a spike can be told from a start

Guard = dict[str, jax.Array]


def judge(
    guard: Guard, loss: jax.Array, grad_norm: jax.Array, spike_sigma: float | None
) -> tuple[jax.Array, Guard]:
    """Whether to take an update, and the guard's next state. All on the device, no host sync.

    A non-finite loss or gradient norm is refused; with `spike_sigma`, so is a norm more than
    that many running standard deviations above the running mean of accepted ones.
    """
    ok = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    bias = 1 - jnp.power(jnp.float32(MEMORY), guard["accepted"])
    if spike_sigma is not None:
        mean = guard["norm_mean"] / jnp.maximum(bias, 1e-6)
        variance = guard["norm_square"] / jnp.maximum(bias, 1e-6) - jnp.square(mean)
        # A run of near-equal norms must not make every ripple a spike: 5% of the mean at least.
        deviation = jnp.maximum(jnp.sqrt(jnp.maximum(variance, 0)), 0.05 * mean)
        spike = grad_norm > mean + spike_sigma * deviation
        ok &= ~(spike & (guard["accepted"] >= WARM_UP))
    norm = jnp.where(ok, grad_norm, 0)

    def average(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(ok, MEMORY * old + (1 - MEMORY) * new, old)

    return ok, {
        "norm_mean": average(guard["norm_mean"], norm),
        "norm_square": average(guard["norm_square"], jnp.square(norm)),
        "accepted": guard["accepted"] + ok,
        "skipped": guard["skipped"] + ~ok,
        "skipped_in_row": jnp.where(ok, 0, guard["skipped_in_row"] + 1),
    }
