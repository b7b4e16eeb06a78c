"""Joint gates (FlashMorph, arXiv 2606.30562): how much each layer's attention is needed, all at once.

Both branches of every layer are frozen. One number a layer, alpha = sigmoid(z), mixes them. All
alphas are trained together on synthetic retrieval; the mean alpha is added to the loss, so that layers
whose attention is not needed go to their linear branch. The budget keeps the layers of the largest
alphas. The paper's code is not public: the optimizer (Adam on z), its settings and z = 0 at the start
are ours. A layer whose linear branch gives no number keeps alpha = 1.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hybridlm.distill.selection.branches import BranchModel, with_gates
from hybridlm.distill.selection.retrieval import Batch, answer_nll
from hybridlm.distill.selection.settings import GateSettings
from hybridlm.models.params import Model, Params
from hybridlm.models.programs import per_model
from hybridlm.runs.json_files import read_json, write_json

SAVE_EVERY = 10  # steps


def train_gates(
    branch: BranchModel,
    batches: Callable[[int], Batch],
    settings: GateSettings,
    *,
    dtype: jnp.dtype = jnp.float32,
    path: pathlib.Path | None = None,
    identity: dict[str, Any] | None = None,
    report: Callable[[int, float, float], None] = lambda step, nll, mean: None,
) -> dict[int, float]:
    """Trains the gates of all candidates; returns alpha by layer.

    Args:
      batches: the batch of a step (of `retrieval_batch`), a function of the step alone.
      path: a file that holds the training's state; training goes on from it, with the same result.
      identity: what the training depends on beside its settings; a file of another one is not used.
      report: called after each step with the step, nats per answer token and the mean alpha.
    """
    optimizer = optax.adam(settings.gate_lr)
    z_C = jnp.zeros(len(branch.layers), jnp.float32)
    state, first = optimizer.init(z_C), 0
    wanted = {"settings": vars(settings), "identity": identity}
    if path is not None and path.is_file():
        saved = read_json(path)
        if saved["of"] == wanted:
            leaves = [jnp.asarray(x, jnp.float32) for x in saved["adam"]]
            z_C, first = jnp.asarray(saved["z"], jnp.float32), saved["step"]
            count, mu, nu = jnp.int32(first), *leaves
            state = (optax.ScaleByAdamState(count, mu, nu), *state[1:])
    layers = branch.layers
    step_of = _step(branch.model, dtype, layers, settings.gate_lr, settings.gate_weight)
    pinned_C = np.zeros(len(layers), bool)
    if not np.isfinite(
        _nll(branch.model, dtype, layers)(branch.params, _alpha(z_C, pinned_C), batches(0))
    ):
        pinned_C = _diverged(branch, batches(0), dtype)
    for step in range(first, settings.gate_steps):
        z_C, state, nll = step_of(branch.params, z_C, pinned_C, state, batches(step))
        report(step, float(nll), float(_alpha(z_C, pinned_C).mean()))
        last = step + 1 == settings.gate_steps
        if path is not None and (last or (step + 1) % SAVE_EVERY == 0):
            adam = [np.asarray(x).tolist() for x in (state[0].mu, state[0].nu)]
            z = np.asarray(z_C).tolist()
            write_json(path, {"of": wanted, "step": step + 1, "z": z, "adam": adam})
    alpha_C = np.asarray(_alpha(z_C, pinned_C), np.float64)
    return dict(zip(branch.layers, alpha_C.tolist(), strict=True))


def _alpha(z_C: jax.Array, pinned_C: jax.Array) -> jax.Array:
    return jnp.where(pinned_C, 1, jax.nn.sigmoid(z_C))


def _diverged(branch: BranchModel, batch: Batch, dtype: jnp.dtype) -> np.ndarray:
    """bool (C,): candidates whose student's mixer, all others being the teacher's, gives no number."""
    run = _nll(branch.model, dtype, branch.layers)
    ones = jnp.ones(len(branch.layers), jnp.float32)
    found = [run(branch.params, ones.at[c].set(0), batch) for c in range(len(branch.layers))]
    return ~np.isfinite(np.asarray(jax.device_get(found)))


@per_model
def _nll(model: Model, dtype: jnp.dtype, layers: tuple[int, ...]) -> Any:
    @jax.jit
    def run(params: Params, alpha_C: jax.Array, batch: Any) -> jax.Array:
        gated = with_gates(model, layers, params, alpha_C)
        nll_B, tokens_B = answer_nll(model, gated, batch, dtype)
        return jnp.sum(nll_B) / jnp.maximum(jnp.sum(tokens_B), 1)

    return run


@per_model
def _step(
    model: Model, dtype: jnp.dtype, layers: tuple[int, ...], rate: float, weight: float
) -> Any:
    optimizer = optax.adam(rate)

    def loss(z_C: jax.Array, pinned_C: jax.Array, params: Params, batch: Any) -> Any:
        alpha_C = _alpha(z_C, pinned_C)
        nll = _nll(model, dtype, layers)(params, alpha_C, batch)
        return nll + weight * jnp.mean(alpha_C), nll

    @jax.jit
    def run(params: Params, z_C: jax.Array, pinned_C: jax.Array, state: Any, batch: Any) -> Any:
        gradient, nll = jax.grad(loss, has_aux=True)(z_C, pinned_C, params, batch)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(z_C, updates), state, nll

    return run
