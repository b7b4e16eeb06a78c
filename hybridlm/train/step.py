"""One optimizer step and one evaluation step, as pure functions of state and batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hybridlm.config.schema import Config
from hybridlm.models.loss import LossSettings, summed_cross_entropy, token_nll
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model
from hybridlm.train import guard
from hybridlm.train.optimizer import learning_rate
from hybridlm.train.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_train_step(
    config: Config,
    model: Model,
    optimizer: optax.GradientTransformation,
    token_bytes_V: np.ndarray,
    dtype: jnp.dtype,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The training step, to be jitted with its state donated.

    It takes a batch of (accumulate, batch, time) arrays, sums loss and gradient over
    micro-batches, and divides once by the weight of all targets: accumulation changes no loss.

    Metrics, float32 scalars: `loss` (nats a target), `bits_per_byte`, `grad_norm` before
    clipping, `learning_rate`, `skipped`, `skipped_in_row` (updates), `targets`.
    """
    remat = REMAT[config.train.remat]

    def micro_loss(params: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return _summed_loss(model, params, batch, dtype, remat)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        def grads_and_nll(micro: Batch) -> tuple[Any, jax.Array]:
            (_, nll), grads = jax.value_and_grad(micro_loss, has_aux=True)(state["params"], micro)
            return grads, nll

        def accumulate(carry: Any, micro: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, carry, grads_and_nll(micro)), None

        if batch["tokens"].shape[0] == 1:
            grads, nll = grads_and_nll(jax.tree.map(lambda x: x[0], batch))
        else:
            zeros = jax.tree.map(jnp.zeros_like, (state["params"], jnp.float32(0)))
            (grads, nll), _ = jax.lax.scan(accumulate, zeros, batch)

        targets = jnp.maximum(jnp.sum(batch["loss_weights"]), 1.0)
        target_bytes = jnp.sum(jnp.asarray(token_bytes_V)[batch["targets"]] * batch["loss_weights"])
        loss = nll / targets
        grad_norm = optax.global_norm(grads) / targets
        clip = config.optimizer.clip_norm
        scale = 1.0 if clip is None else jnp.minimum(1.0, clip / jnp.maximum(grad_norm, 1e-12))
        ok, guard_state = guard.judge(state["guard"], loss, grad_norm, config.train.spike_sigma)

        grads = jax.tree.map(lambda g: g * (scale / targets), grads)
        directions, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        rate = learning_rate(config.optimizer, config.train.steps, state["step"])
        params = jax.tree.map(lambda p, d: p - rate * d, state["params"], directions)

        def keep(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(ok, new, old)

        new_state = {
            "params": jax.tree.map(keep, params, state["params"]),
            "opt_state": jax.tree.map(keep, opt_state, state["opt_state"]),
            "step": state["step"] + 1,
            "guard": guard_state,
        }
        metrics = {
            "loss": loss,
            "bits_per_byte": nll / (jnp.maximum(target_bytes, 1.0) * jnp.log(2.0)),
            "grad_norm": grad_norm,
            "learning_rate": rate,
            "skipped": guard_state["skipped"],
            "skipped_in_row": guard_state["skipped_in_row"],
            "targets": targets,
        }
        return new_state, metrics

    return train_step


def make_eval_step(
    model: Model, token_bytes_V: np.ndarray, dtype: jnp.dtype
) -> Callable[[Any, Batch], dict[str, jax.Array]]:
    """Sums over a batch of (batch, time) arrays, float32, each by position in the document.

    `nll_T` nats, `targets_T` their number, `bytes_T` the UTF-8 bytes they stand for.
    """

    def eval_step(params: Any, batch: Batch) -> dict[str, jax.Array]:
        module = model.bind(params)
        context = SequenceContext(batch["segment_ids"], batch["positions"])
        hidden_BTD = module.hidden(batch["tokens"], context, dtype=dtype)
        nll_BT = token_nll(hidden_BTD, module.head_kernel(), batch["targets"], loss_settings(model))
        weights_BT = batch["loss_weights"]
        bytes_BT = jnp.asarray(token_bytes_V)[batch["targets"]] * weights_BT
        time = nll_BT.shape[1]

        def by_position(x_BT: jax.Array) -> jax.Array:
            return jnp.zeros(time).at[batch["positions"]].add(x_BT)

        return {
            "nll_T": by_position(nll_BT * weights_BT),
            "targets_T": by_position(weights_BT),
            "bytes_T": by_position(bytes_BT),
        }

    return eval_step


def loss_settings(model: Model) -> LossSettings:
    """The loss's share of the model's settings."""
    return LossSettings(model.config.logit_soft_cap, model.config.z_loss)


def _summed_loss(
    model: Model, params: Any, batch: Batch, dtype: jnp.dtype, remat: Any
) -> tuple[jax.Array, jax.Array]:
    module = model.bind(params)
    context = SequenceContext(batch["segment_ids"], batch["positions"])
    hidden_BTD = module.hidden(batch["tokens"], context, dtype=dtype, remat=remat)
    return summed_cross_entropy(
        hidden_BTD,
        module.head_kernel(),
        batch["targets"],
        batch["loss_weights"],
        loss_settings(model),
    )


_policies = jax.checkpoint_policies
# The matrix products of the layers and attention's (out, lse); what is cheap is recomputed.
_products = _policies.save_from_both_policies(
    _policies.dots_with_no_batch_dims_saveable,
    _policies.save_only_these_names("attention_out", "attention_lse"),
)

REMAT: dict[str, Callable[..., Any]] = {
    "none": lambda f: f,
    "full": jax.checkpoint,
    "dots": lambda f: jax.checkpoint(f, policy=_products),
}
