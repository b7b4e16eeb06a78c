"""One optimizer step, as a pure function of state and batch."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hybridlm.distill.kl import Divergence, summed_divergence
from hybridlm.models import observed as observed_parameters
from hybridlm.models.loss import loss_settings, summed_cross_entropy
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model
from hybridlm.models.stack import Remat
from hybridlm.models.trainable import Trainable
from hybridlm.train import guard
from hybridlm.train.optimizer import descend, lr_multipliers
from hybridlm.train.settings import OptimizerConfig, TrainConfig
from hybridlm.train.state import TrainState

Batch = dict[str, Any]
Metrics = dict[str, jax.Array]
#: (model, module, hidden_BTD, batch) -> (the objective, the sums to log) of a micro-batch.
Head = Callable[..., tuple[jax.Array, Metrics]]


def make_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    train: TrainConfig,
    schedule: OptimizerConfig,
    token_bytes_V: np.ndarray,
    dtype: jnp.dtype,
    divergence: Divergence | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The training step, to be jitted with its state donated.

    It takes a batch of (accumulate, batch, time) arrays, sums loss and gradient over
    micro-batches, and divides once by the weight of all targets, so that accumulation does not
    change the loss. An optional `window` in the batch, int32 (accumulate,), narrows the attention
    windows (see `SequenceContext`): one program serves a schedule of windows. So do optional
    `ScheduleNumbers` as `schedule`, which take the place of the config's rate and lengths, except
    where there are multipliers of the rate.

    Parameters that `optimizer.freeze` names are constants of the gradient, which is not computed
    for arrays that are frozen whole. With `train.ema_decay` the state has a moving average.
    Parameters with a rule move by what they observed (see `hybridlm.models.observed`).

    With `divergence` the objective is that to a teacher, whose parameters are the batch's `teacher`; the
    metrics then have `kl`, nats per target, and `loss` is still the cross-entropy.

    Metrics, float32 scalars: `loss` (nats per target), `bits_per_byte`, `grad_norm` before
    clipping, `learning_rate`, `skipped` and `skipped_in_row` (updates), `targets`, and, if a mixer
    has a loss of its own, `aux_loss`, which is added to the objective. Rules may log more.
    """
    remat = REMAT[train.remat]
    has_loss = model.config.has_loss
    micro_loss = _summed_loss_and_mixers if has_loss else _summed_loss
    summed = ["nll"] + ["aux"] * has_loss + ["kl"] * (divergence is not None)
    trainable = Trainable.of(model, schedule.freeze)
    multipliers = lr_multipliers(schedule, model, trainable)
    rules = model.rules

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        numbers, teacher = batch.get("schedule"), batch.get("teacher")
        batch = {n: x for n, x in batch.items() if n not in ("schedule", "teacher")}
        head = _summed_cross_entropy
        if divergence is not None:
            head = functools.partial(_summed_divergence, divergence, teacher, dtype)
        trained = trainable.take(state["params"])
        targets = jnp.maximum(jnp.sum(batch["loss_weights"]), 1.0)
        tokens = jnp.maximum(jnp.sum(batch["segment_ids"] != 0), 1)

        def objective(arrays: Any, micro: Batch) -> tuple[jax.Array, Metrics]:
            params = trainable.merge(state["params"], arrays)
            return micro_loss(model, params, micro, dtype, remat, targets / tokens, head)

        def grads_and_sums(micro: Batch) -> tuple[Any, Metrics]:
            arrays = trainable.arrays(state["params"])
            (_, sums), grads = jax.value_and_grad(objective, has_aux=True)(arrays, micro)
            return trainable.cut(grads), sums

        def accumulate(carry: Any, micro: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, carry, grads_and_sums(micro)), None

        if batch["tokens"].shape[0] == 1:
            grads, sums = grads_and_sums(jax.tree.map(lambda x: x[0], batch))
        else:
            sums = {name: jnp.float32(0) for name in summed}
            zeros = jax.tree.map(jnp.zeros_like, (trained, sums))
            (grads, sums), _ = jax.lax.scan(accumulate, zeros, batch)

        observed = {}
        if rules:
            grads, observed = observed_parameters.split(grads, rules)
        nll = sums["nll"]
        target_bytes = jnp.sum(jnp.asarray(token_bytes_V)[batch["targets"]] * batch["loss_weights"])
        loss = nll / targets
        grad_norm = optax.global_norm(grads) / targets
        clip = schedule.clip_norm
        scale = 1.0 if clip is None else jnp.minimum(1.0, clip / jnp.maximum(grad_norm, 1e-12))
        ok, guard_state = guard.check_update(state["guard"], loss, grad_norm, train.spike_sigma)

        grads = jax.tree.map(lambda g: g * (scale / targets), grads)
        directions, opt_state = optimizer.update(grads, state["opt_state"], trained)
        updated, rate = descend(
            schedule, train.steps, state["step"], trained, directions, multipliers, numbers
        )

        if observed:
            updated = observed_parameters.move(updated, trained, rules, observed)

        def keep(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(ok, new, old)

        kept = jax.tree.map(keep, updated, trained)
        new_state = {
            "params": trainable.put(state["params"], kept),
            "opt_state": jax.tree.map(keep, opt_state, state["opt_state"]),
            "step": state["step"] + 1,
            "guard": guard_state,
        }
        if train.ema_decay is not None:
            new_state["ema"] = jax.tree.map(
                keep,
                moved_average(state["ema"], kept, train.ema_decay, guard_state["accepted"]),
                state["ema"],
            )
        metrics = {
            "loss": loss,
            "bits_per_byte": nll / (jnp.maximum(target_bytes, 1.0) * jnp.log(2.0)),
            "grad_norm": grad_norm,
            "learning_rate": rate,
            "skipped": guard_state["skipped"],
            "skipped_in_row": guard_state["skipped_in_row"],
            "targets": targets,
        }
        if has_loss:
            metrics["aux_loss"] = sums["aux"] / targets
        if divergence is not None:
            metrics["kl"] = sums["kl"] / targets
        metrics |= observed_parameters.metrics(rules, observed)
        return new_state, metrics

    return train_step


def moved_average(ema: Any, params: Any, decay: float, accepted: jax.Array) -> Any:
    """The moving average after update number `accepted`, from the parameters after it.

    After t updates it weights the parameters after update s by decay^(t-s) (1 - decay) /
    (1 - decay^t), as a debiased moment of Adam (arXiv 1412.6980, section 3). So it does not depend
    on the initial parameters, and the first 1 / (1 - decay) are averaged almost uniformly.
    """
    weight = (1 - decay) / -jnp.expm1(jnp.maximum(accepted, 1) * math.log(decay))
    return jax.tree.map(lambda e, p: jnp.where(accepted == 1, p, e + weight * (p - e)), ema, params)


def _summed_loss(
    model: Model,
    params: Any,
    batch: Batch,
    dtype: jnp.dtype,
    remat: Any,
    targets_per_token: Any,
    head: Head,
) -> tuple[jax.Array, Metrics]:
    """The objective of one micro-batch, summed over its targets, and the sums to log."""
    del targets_per_token
    module, context = model.bind(params), _context(batch)
    hidden_BTD = module.hidden(batch["tokens"], context, dtype=dtype, remat=remat)
    return head(model, module, hidden_BTD, batch)


def _summed_loss_and_mixers(
    model: Model,
    params: Any,
    batch: Batch,
    dtype: jnp.dtype,
    remat: Any,
    targets_per_token: Any,
    head: Head,
) -> tuple[jax.Array, Metrics]:
    """`_summed_loss` plus the mixers' own losses.

    Those are means over the micro-batch's tokens without padding. Multiplied by the number of
    these tokens and by `targets_per_token` of the whole batch, they scale as a sum over targets
    and do not depend on how the batch is split.
    """
    module, context = model.bind(params), _context(batch)
    hidden_BTD, loss = module.hidden_and_loss(batch["tokens"], context, dtype=dtype, remat=remat)
    total, sums = head(model, module, hidden_BTD, batch)
    aux = loss * jnp.sum(batch["segment_ids"] != 0) * targets_per_token
    return total + aux, {**sums, "aux": aux}


def _context(batch: Batch) -> SequenceContext:
    return SequenceContext(batch["segment_ids"], batch["positions"], batch.get("window"))


def _summed_cross_entropy(
    model: Model, module: Any, hidden_BTD: jax.Array, batch: Batch
) -> tuple[jax.Array, Metrics]:
    total, nll = summed_cross_entropy(
        hidden_BTD,
        module.head_kernel(),
        batch["targets"],
        batch["loss_weights"],
        loss_settings(model.config),
    )
    return total, {"nll": nll}


def _summed_divergence(
    divergence: Divergence,
    teacher_params: Any,
    dtype: jnp.dtype,
    model: Model,
    module: Any,
    hidden_BTD: jax.Array,
    batch: Batch,
) -> tuple[jax.Array, Metrics]:
    """As `_summed_cross_entropy`, towards the teacher's probabilities."""
    teacher = divergence.teacher.bind(teacher_params)
    wanted_BTE = teacher.hidden(batch["tokens"], _context(batch), dtype=dtype)
    sums = summed_divergence(
        hidden_BTD,
        module.head_kernel(),
        wanted_BTE,
        teacher.head_kernel(),
        batch["targets"],
        batch["loss_weights"],
        divergence.settings(model.config),
    )
    return sums.total, {"nll": sums.nll, "kl": sums.kl}


_policies = jax.checkpoint_policies
# Keeps the layers' matrix products and attention's (out, lse); recomputes the cheap operations. Of
# experts that are split over a mesh no product is kept: their backward pass computes them again.
_products = _policies.save_from_both_policies(
    _policies.dots_with_no_batch_dims_saveable,
    _policies.save_only_these_names("attention_out", "attention_lse", "expert_product"),
)

REMAT: dict[str, Remat] = {
    "none": Remat(),
    "dots": Remat(unit=functools.partial(jax.checkpoint, policy=_products)),
    "full": Remat(layer=jax.checkpoint),
    "unit": Remat(unit=jax.checkpoint),
}
