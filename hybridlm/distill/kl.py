"""Stage 3: the divergence of a student's next-token probabilities from the teacher's.

As the cross-entropy of `hybridlm.models.loss`, it is computed slice by slice of time, with its gradients
in the forward pass, so that no pass holds more than one slice of both models' logits.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hybridlm.models.loss import LossSettings, cut_in_slices, loss_settings, pick, slice_logits
from hybridlm.models.norms import at_least_float32
from hybridlm.models.params import Model
from hybridlm.models.settings import ModelConfig
from hybridlm.parallel.gradients import gathered
from hybridlm.parallel.ops import per_shard


class KLSettings(NamedTuple):
    """Settings of the objective.

    Attributes:
      student, teacher: how logits follow from the heads' products.
      temperature, ce_weight: as `TeacherConfig`.
    """

    student: LossSettings = LossSettings()
    teacher: LossSettings = LossSettings()
    temperature: float = 1.0
    ce_weight: float = 0.0


class Divergence(NamedTuple):
    """The divergence to a teacher as the objective of training.

    Attributes:
      teacher: its graph; temperature, ce_weight: as `TeacherConfig`.
    """

    teacher: Model
    temperature: float
    ce_weight: float

    def settings(self, student: ModelConfig) -> KLSettings:
        """The settings of `summed_divergence` for a student."""
        logits = loss_settings(student), loss_settings(self.teacher.config)
        return KLSettings(*logits, self.temperature, self.ce_weight)


class KLSums(NamedTuple):
    """Float32 scalars in nats, summed over tokens with their weights.

    Attributes:
      total: (1 - ce_weight) T^2 KL(teacher^(1/T) || student^(1/T)) + ce_weight (nll + z_loss); only
        this has a gradient, with respect to the student's hidden states and head.
      nll: of the targets, at temperature 1.
      kl: KL(teacher || student) of the two distributions at temperature T, without T^2.
    """

    total: jax.Array
    nll: jax.Array
    kl: jax.Array


def summed_divergence(
    hidden_BTD: jax.Array,
    head_DV: jax.Array,
    teacher_hidden_BTE: jax.Array,
    teacher_head_EV: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    settings: KLSettings = KLSettings(),
) -> KLSums:
    """The objective, summed over tokens of a batch.

    Args:
      hidden_BTD, teacher_hidden_BTE: outputs of the final norms, any float dtype.
      head_DV, teacher_head_EV: float32, over the same vocabulary.
      targets_BT: int32. weights_BT: float32, 0 for targets that do not count.
    """
    sums = _by_shard(
        hidden_BTD,
        head_DV,
        jax.lax.stop_gradient(teacher_hidden_BTE),
        jax.lax.stop_gradient(teacher_head_EV),
        targets_BT,
        weights_BT,
        settings=settings,
    )
    return KLSums(*(jnp.sum(x_N) for x_N in sums))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(settings, hidden, head, teacher_hidden, teacher_head, targets, weights):
    return _forward(settings, hidden, head, teacher_hidden, teacher_head, targets, weights)[0]


def _forward(settings, hidden_BTD, head_DV, taught_BTE, taught_EV, targets_BT, weights_BT):
    heat, share = settings.temperature, settings.ce_weight

    def one_slice(carry, xs):
        sums, d_head_DV = carry
        hidden_BCD, taught_BCE, targets_BC, weights_BC = xs
        logits, slope_of_logits = slice_logits(hidden_BCD, head_DV, settings.student)
        wanted, _ = slice_logits(taught_BCE, taught_EV, settings.teacher)
        log_p, log_q = (jax.nn.log_softmax(x / heat, axis=-1) for x in (wanted, logits))
        p = jnp.exp(log_p)
        kl = jnp.sum(p * (log_p - log_q), axis=-1)
        log_normalizer = jax.nn.logsumexp(logits, axis=-1)
        nll = log_normalizer - pick(logits, targets_BC)
        z_loss = settings.student.z_loss
        ce = nll + z_loss * jnp.square(log_normalizer)
        total = (1 - share) * heat**2 * kl + share * ce
        d_logits = (1 - share) * heat * (jnp.exp(log_q) - p)
        if share:
            onehot = targets_BC[..., None] == jnp.arange(logits.shape[-1])[None, None, :]
            slope = (1 + 2 * z_loss * log_normalizer)[..., None]
            q = jnp.exp(logits - log_normalizer[..., None])
            d_logits += share * (slope * q - onehot)
        d_logits = d_logits * weights_BC[..., None] * slope_of_logits
        d_logits = d_logits.astype(hidden_BCD.dtype)
        d_hidden = jnp.einsum("bcv,dv->bcd", d_logits, head_DV.astype(hidden_BCD.dtype))
        d_head = jnp.einsum(
            "bcd,bcv->dv", hidden_BCD, d_logits, preferred_element_type=head_DV.dtype
        )
        more = tuple(jnp.sum(x * weights_BC) for x in (total, nll, kl))
        return (jax.tree.map(jnp.add, sums, more), d_head_DV + d_head), d_hidden

    batch, time = targets_BT.shape
    cut = cut_in_slices(head_DV, hidden_BTD, taught_BTE, targets_BT, weights_BT)
    zero = jnp.zeros((), at_least_float32(hidden_BTD[:0]).dtype)
    carry = ((zero, zero, zero), jnp.zeros_like(head_DV))
    (sums, d_head_DV), d_hidden_NBCD = jax.lax.scan(one_slice, carry, cut)
    d_hidden_BTD = jnp.moveaxis(d_hidden_NBCD, 0, 1).reshape(batch, -1, hidden_BTD.shape[-1])
    return sums, (d_hidden_BTD[:, :time], d_head_DV)


def _backward(settings, gradients, cotangents):
    del settings
    d_total = cotangents[0]  # the other sums are reported, not optimised
    d_hidden_BTD, d_head_DV = gradients
    scaled = (d_total.astype(d_hidden_BTD.dtype) * d_hidden_BTD, d_total * d_head_DV)
    return *scaled, None, None, None, None


_summed.defvjp(_forward, _backward)


def _sums(hidden, head, teacher_hidden, teacher_head, targets, weights, *, settings):
    head = gathered(head, hidden.shape[-1], hidden.dtype)
    teacher_head = gathered(teacher_head, teacher_hidden.shape[-1], teacher_hidden.dtype)
    sums = _summed(settings, hidden, head, teacher_hidden, teacher_head, targets, weights)
    return tuple(x[None] for x in sums)


# As the cross-entropy: each device gathers both heads once and processes its own tokens. The gradient of
# the student's head is scattered; the teacher's has none.
_TOKENS = dict(
    hidden="BT-",
    head="E-",
    teacher_hidden="BT-",
    teacher_head="E-",
    targets="BT",
    weights="BT",
)
_by_shard = per_shard(_sums, None, _TOKENS, ("N", "N", "N"), each_token=True)
