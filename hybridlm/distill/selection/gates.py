"""Joint gates (FlashMorph, arXiv 2606.30562): how much each layer's attention is needed, all at once.

Both branches of every layer are frozen. One number a layer, alpha = sigmoid(z), mixes them. All
alphas are trained together on synthetic retrieval, with the loss nll + weight * sum(alpha): a layer
goes to its linear branch if its attention is worth less than `weight` nats. The budget keeps the layers
of the largest alphas.

The paper's code is not public. Ours are the optimizer (Adam on z), its settings, z = 0 at the start, and
the weight: unless it is given, it rises while the mean alpha is above the budget's share of layers and
falls while it is below (dual ascent), so that the alphas end on both sides of the cut. A layer whose
linear branch gives no number on the first batch where the teacher does keeps alpha = 1; a batch whose loss
or gradient is not finite changes nothing.
"""

import dataclasses
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
from hybridlm.errors import UserError
from hybridlm.models.params import Model, Params
from hybridlm.models.programs import per_model
from hybridlm.runs.json_files import read_json, write_json
from hybridlm.settings import json_text

SAVE_EVERY = 10  # steps
ASCENT = 0.05  # nats by which the weight changes in a step, times the mean alpha's excess


@dataclasses.dataclass
class _Training:
    """The state of training.

    Attributes:
      step: the next step.
      skipped: steps so far that changed nothing.
      weight: of the gates in the loss.
    """

    step: int
    z_C: jax.Array
    adam: Any
    weight: float
    skipped: int = 0


def train_gates(
    branch: BranchModel,
    batches: Callable[[int], Batch],
    settings: GateSettings,
    share: float,
    *,
    dtype: jnp.dtype = jnp.float32,
    path: pathlib.Path | None = None,
    identity: dict[str, Any] | None = None,
    report: Callable[[int, float, float], None] = lambda step, nll, mean: None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[int, float]:
    """Trains the gates of all candidates; returns alpha by layer.

    Args:
      batches: the batch of a step (of `retrieval_batch`), a function of the step alone.
      share: of the candidates, the budget's: the weight is adapted to it.
      path: a file that holds the training's state; training goes on from it, with the same result.
      identity: what the training depends on beside its settings; a file of another one is not used.
      report: called after each step with the step, nats per answer token and the mean alpha.
      note: called with a sentence if a loss or gradient was not finite, so that steps were skipped.

    Raises:
      UserError: if every step was skipped.
    """
    model, layers = branch.model, branch.layers
    of = {"settings": vars(settings), "share": share, "identity": identity}
    of = json_text.loads(json_text.dumps(of))
    now = _begin(len(layers), settings, path, of)
    pinned_C = _pinned(branch, now.z_C, batches, settings.gate_steps, dtype)
    step_of = _step(model, dtype, layers, settings.gate_lr)
    while now.step < settings.gate_steps:
        given = (now.z_C, pinned_C, np.float32(now.weight), now.adam, batches(now.step))
        now.z_C, now.adam, nll, finite = step_of(branch.params, *given)
        mean = float(_alpha(now.z_C, pinned_C).mean())
        if not finite:
            now.skipped += 1
        elif settings.gate_weight is None:
            now.weight = max(now.weight + ASCENT * (mean - share), 0.0)
        report(now.step, float(nll), mean)
        now.step += 1
        if path is not None and (now.step == settings.gate_steps or now.step % SAVE_EVERY == 0):
            _save(now, path, of)
    if now.skipped == now.step:
        raise UserError(
            f"gates: none of the {now.step} steps has a finite loss and gradient, so no gate was trained:"
            " choose another --gate_task, or a method that evaluates layers one by one, such as greedy"
        )
    if now.skipped:
        note(
            f"{now.skipped} of {now.step} steps of the gates' training were skipped, because the loss or"
            " its gradient was not finite"
        )
    alpha_C = np.asarray(_alpha(now.z_C, pinned_C), np.float64)
    return dict(zip(layers, alpha_C.tolist(), strict=True))


def _begin(count: int, settings: GateSettings, path: pathlib.Path | None, of: Any) -> _Training:
    """The state of the file, or the one before the first step."""
    z_C = jnp.zeros(count, jnp.float32)
    adam = optax.adam(settings.gate_lr).init(z_C)
    if path is not None and path.is_file():
        saved = read_json(path)
        arrays = {n: np.asarray(saved.get(n), np.float32) for n in ("z", "mu", "nu")}
        # A file written before such steps were skipped may hold NaN, with which training cannot go on.
        if saved["of"] == of and all(np.isfinite(x).all() for x in arrays.values()):
            z_C, mu, nu = map(jnp.asarray, arrays.values())
            step, skipped = saved["step"], saved.get("skipped", 0)
            adam = (optax.ScaleByAdamState(jnp.int32(step - skipped), mu, nu), *adam[1:])
            return _Training(step, z_C, adam, saved["weight"], skipped)
    return _Training(0, z_C, adam, settings.gate_weight or 0.0)


def _save(now: _Training, path: pathlib.Path, of: Any) -> None:
    arrays = {"z": now.z_C, "mu": now.adam[0].mu, "nu": now.adam[0].nu}
    lists = {name: np.asarray(x).tolist() for name, x in arrays.items()}
    numbers = {"step": now.step, "weight": now.weight, "skipped": now.skipped}
    write_json(path, {"of": of, **numbers, **lists})


def _alpha(z_C: jax.Array, pinned_C: jax.Array) -> jax.Array:
    return jnp.where(pinned_C, 1, jax.nn.sigmoid(z_C))


def _pinned(
    branch: BranchModel,
    z_C: jax.Array,
    batches: Callable[[int], Batch],
    steps: int,
    dtype: jnp.dtype,
) -> np.ndarray:
    """bool (C,): candidates that keep alpha = 1, from the first batch on which the teacher is finite."""
    run, none_C = _nll(branch.model, dtype, branch.layers), np.zeros(len(branch.layers), bool)
    for step in range(steps):
        batch = batches(step)
        if np.isfinite(run(branch.params, _alpha(z_C, none_C), batch)):
            return none_C
        if np.isfinite(run(branch.params, jnp.ones_like(z_C), batch)):
            return _diverged(branch, batch, dtype)
    return none_C


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
def _step(model: Model, dtype: jnp.dtype, layers: tuple[int, ...], rate: float) -> Any:
    optimizer = optax.adam(rate)

    def loss(z_C: jax.Array, pinned_C: jax.Array, weight: jax.Array, params: Params, batch: Any):
        alpha_C = _alpha(z_C, pinned_C)
        nll = _nll(model, dtype, layers)(params, alpha_C, batch)
        return nll + weight * jnp.sum(alpha_C), nll

    @jax.jit
    def run(params: Params, z_C: Any, pinned_C: Any, weight: Any, state: Any, batch: Any) -> Any:
        gradient, nll = jax.grad(loss, has_aux=True)(z_C, pinned_C, weight, params, batch)
        updates, new = optimizer.update(gradient, state)
        new = optax.apply_updates(z_C, updates), new
        finite = jnp.isfinite(nll) & jnp.all(jnp.isfinite(gradient))
        z_C, state = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, (z_C, state))
        return z_C, state, nll, finite

    return run
