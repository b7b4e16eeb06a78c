"""Next-token cross-entropy without the full logits: the head is applied to slices of time.

The gradient with respect to logits is softmax - onehot, which needs only the logits
of a slice. `summed_cross_entropy` therefore computes the gradients of hidden states and head in the
forward pass and stores only those. Neither pass holds more than one slice of logits in memory.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hybridlm.models.norms import at_least_float32
from hybridlm.models.settings import ModelConfig
from hybridlm.parallel.gradients import gathered
from hybridlm.parallel.ops import per_shard

# The logits of a slice, in elements: twice as many as the head has, and at most half of all, because
# each slice reads and rewrites the head's gradient; with a small head 16 MiB of float32, and a quarter.
HEADS_IN_SLICE, MIN_SLICES = 2, 2
SMALL_SLICE, MIN_SMALL_SLICES = 2**22, 4


class LossSettings(NamedTuple):
    """Settings of the loss."""

    logit_soft_cap: float | None = None
    z_loss: float = 0.0
    logit_scale: float = 1.0


def loss_settings(config: ModelConfig) -> LossSettings:
    """The loss settings of a model config."""
    return LossSettings(config.logit_soft_cap, config.z_loss, config.logit_scale)


def summed_cross_entropy(
    hidden_BTD: jax.Array,
    head_DV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    settings: LossSettings = LossSettings(),
) -> tuple[jax.Array, jax.Array]:
    """Sum over tokens of weight * (nll + z_loss * logsumexp^2), and of weight * nll alone.

    Args:
      hidden_BTD: output of the final norm, any float dtype.
      head_DV: float32 head kernel; multiplied in hidden's dtype, accumulated in float32.
      targets_BT: int32.
      weights_BT: float32, 0 for targets that do not count.

    Returns:
      (total, nll): float32 scalars in nats. Only `total` has a gradient, with respect to
      hidden_BTD and head_DV.
    """
    total_N, nll_N = _sums_by_shard(hidden_BTD, head_DV, targets_BT, weights_BT, settings=settings)
    return jnp.sum(total_N), jnp.sum(nll_N)


def token_nll(
    hidden_BTD: jax.Array,
    head_DV: jax.Array,
    targets_BT: jax.Array,
    settings: LossSettings = LossSettings(),
) -> jax.Array:
    """The negative log-likelihood of each target, (B, T) float32 nats; computed slice by slice."""
    return _nll_by_shard(hidden_BTD, head_DV, targets_BT, settings=settings)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(settings, hidden_BTD, head_DV, targets_BT, weights_BT):
    nll_BT, log_normalizer_BT = _nll_and_normalizer(settings, hidden_BTD, head_DV, targets_BT)
    nll = jnp.sum(nll_BT * weights_BT)
    return nll + settings.z_loss * jnp.sum(jnp.square(log_normalizer_BT) * weights_BT), nll


def _nll_and_normalizer(settings, hidden_BTD, head_DV, targets_BT):
    def one_slice(_, xs):
        logits, _ = slice_logits(xs[0], head_DV, settings)
        log_normalizer = jax.nn.logsumexp(logits, axis=-1)
        return None, (log_normalizer - pick(logits, xs[1]), log_normalizer)

    batch, time = targets_BT.shape
    slices = cut_in_slices(head_DV, hidden_BTD, targets_BT)
    _, outs = jax.lax.scan(one_slice, None, slices)
    return [jnp.moveaxis(x_NBC, 0, 1).reshape(batch, -1)[:, :time] for x_NBC in outs]


def _forward(settings, hidden_BTD, head_DV, targets_BT, weights_BT):
    def one_slice(carry, xs):
        total, nll_sum, d_head_DV = carry
        hidden_BCD, targets_BC, weights_BC = xs
        logits, slope_of_logits = slice_logits(hidden_BCD, head_DV, settings)
        log_normalizer = jax.nn.logsumexp(logits, axis=-1)
        nll = log_normalizer - pick(logits, targets_BC)
        loss = nll + settings.z_loss * jnp.square(log_normalizer)
        slope = (1 + 2 * settings.z_loss * log_normalizer) * weights_BC
        p = jnp.exp(logits - log_normalizer[..., None])
        onehot = targets_BC[..., None] == jnp.arange(logits.shape[-1])[None, None, :]
        d_logits = slope[..., None] * p - jnp.where(onehot, weights_BC[..., None], 0)
        d_logits = (d_logits * slope_of_logits).astype(hidden_BCD.dtype)
        d_hidden = jnp.einsum("bcv,dv->bcd", d_logits, head_DV.astype(hidden_BCD.dtype))
        d_head = jnp.einsum(
            "bcd,bcv->dv", hidden_BCD, d_logits, preferred_element_type=head_DV.dtype
        )
        carry = (
            total + jnp.sum(loss * weights_BC),
            nll_sum + jnp.sum(nll * weights_BC),
            d_head_DV + d_head,
        )
        return carry, d_hidden

    batch, time = targets_BT.shape
    slices = cut_in_slices(head_DV, hidden_BTD, targets_BT, weights_BT)
    zero = jnp.zeros((), at_least_float32(hidden_BTD[:0]).dtype)
    carry = (zero, zero, jnp.zeros_like(head_DV))
    (total, nll, d_head_DV), d_hidden_NBCD = jax.lax.scan(one_slice, carry, slices)
    d_hidden_BTD = jnp.moveaxis(d_hidden_NBCD, 0, 1).reshape(batch, -1, hidden_BTD.shape[-1])
    return (total, nll), (d_hidden_BTD[:, :time], d_head_DV)


def _backward(settings, gradients, cotangents):
    del settings
    d_total, _ = cotangents  # nll is reported, not optimised
    d_hidden_BTD, d_head_DV = gradients
    scaled = (d_total.astype(d_hidden_BTD.dtype) * d_hidden_BTD, d_total * d_head_DV)
    return *scaled, None, None


_summed.defvjp(_forward, _backward)


def slice_logits(hidden, head_DV, settings: LossSettings) -> tuple[jax.Array, jax.Array | float]:
    """Scaled and soft-capped logits, and their slope by the head's products, in float32."""
    dtype = jnp.promote_types(hidden.dtype, jnp.float32)
    logits = jnp.dot(hidden, head_DV.astype(hidden.dtype), preferred_element_type=dtype)
    if settings.logit_scale != 1.0:
        logits = logits * settings.logit_scale
    if settings.logit_soft_cap is None:
        return logits, settings.logit_scale
    squashed = jnp.tanh(logits / settings.logit_soft_cap)
    slope = 1 - jnp.square(squashed)
    if settings.logit_scale != 1.0:
        slope = slope * settings.logit_scale
    return settings.logit_soft_cap * squashed, slope


def pick(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


def slice_length(batch: int, time: int, width: int, vocab: int) -> int:
    """Tokens of each row in a slice: of the lengths that fit, the longest that divides `time`.

    A length that does not divide it (the last slice is padded) is taken if it is twice as long.
    """
    logits, slices = HEADS_IN_SLICE * width * vocab, MIN_SLICES
    if logits < SMALL_SLICE:
        logits, slices = SMALL_SLICE, MIN_SMALL_SLICES
    longest = max(1, min(logits // (batch * vocab), -(-time // slices)))
    divisor = next(n for n in range(longest, 0, -1) if time % n == 0)
    return divisor if 2 * divisor > longest else longest


def cut_in_slices(head_DV: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Cuts (B, T, ...) arrays along time into (slices, B, C, ...), the last slice zero-padded."""
    batch, time = arrays[0].shape[:2]
    length = slice_length(batch, time, *head_DV.shape)
    count = -(-time // length)

    def cut(x: jax.Array) -> jax.Array:
        padding = [(0, 0), (0, count * length - time)] + [(0, 0)] * (x.ndim - 2)
        return jnp.moveaxis(jnp.pad(x, padding).reshape(batch, count, length, *x.shape[2:]), 1, 0)

    return tuple(cut(x) for x in arrays)


def _sums(hidden_BTD, head_DV, targets_BT, weights_BT, *, settings):
    head_DV = gathered(head_DV, hidden_BTD.shape[-1], hidden_BTD.dtype)
    total, nll = _summed(settings, hidden_BTD, head_DV, targets_BT, weights_BT)
    return total[None], nll[None]


def _nll(hidden_BTD, head_DV, targets_BT, *, settings):
    head_DV = gathered(head_DV, hidden_BTD.shape[-1], hidden_BTD.dtype)
    return _nll_and_normalizer(settings, hidden_BTD, head_DV, targets_BT)[0]


# Each device gathers the head once and processes its own tokens. Otherwise XLA would gather the head,
# and sum its gradient over all devices, in every slice. The vocabulary stays split over `tensor`.
_TOKENS = dict(hidden_BTD="BT-", head_DV="E-", targets_BT="BT", weights_BT="BT")
_sums_by_shard = per_shard(_sums, None, _TOKENS, ("N", "N"), each_token=True)
_nll_by_shard = per_shard(_nll, None, _TOKENS, ("BT",), each_token=True)
