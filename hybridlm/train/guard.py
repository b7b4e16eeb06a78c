"""Decides which updates are applied: no non-finite ones and, optionally, no gradient spikes."""

import jax
import jax.numpy as jnp

DECAY = 0.98  # per step, of the running mean and mean square of gradient norms: about 50 steps
WARM_UP = 20  # accepted updates before spikes are detected

Guard = dict[str, jax.Array]


def check_update(
    guard: Guard, loss: jax.Array, grad_norm: jax.Array, spike_sigma: float | None
) -> tuple[jax.Array, Guard]:
    """Checks one update on the device, without a host sync.

    An update with a non-finite loss or gradient norm is skipped. With `spike_sigma`, an update is
    also skipped if its norm is more than that many running standard deviations above the running
    mean of accepted norms.

    Returns:
      (bool scalar: whether to apply the update, the guard's next state).
    """
    ok = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    bias = 1 - jnp.power(jnp.float32(DECAY), guard["accepted"])
    if spike_sigma is not None:
        mean = guard["norm_mean"] / jnp.maximum(bias, 1e-6)
        variance = guard["norm_square"] / jnp.maximum(bias, 1e-6) - jnp.square(mean)
        # At least 5% of the mean: after near-equal norms, small changes are not spikes.
        deviation = jnp.maximum(jnp.sqrt(jnp.maximum(variance, 0)), 0.05 * mean)
        spike = grad_norm > mean + spike_sigma * deviation
        ok &= ~(spike & (guard["accepted"] >= WARM_UP))
    norm = jnp.where(ok, grad_norm, 0)

    def average(old: jax.Array, new: jax.Array) -> jax.Array:
        return jnp.where(ok, DECAY * old + (1 - DECAY) * new, old)

    return ok, {
        "norm_mean": average(guard["norm_mean"], norm),
        "norm_square": average(guard["norm_square"], jnp.square(norm)),
        "accepted": guard["accepted"] + ok,
        "skipped": guard["skipped"] + ~ok,
        "skipped_in_row": jnp.where(ok, 0, guard["skipped_in_row"] + 1),
    }
