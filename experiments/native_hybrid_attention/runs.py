"""Trains and measures one run, an arm with a seed: a matter of seconds, so that it is made whole or not.

A seed gives all arms of a task the same batches in the same order, and the same initial parameters
where their shapes agree.
"""

import functools
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.native_hybrid_attention.arms import (
    MQAR,
    NHA,
    TEXT_CORPUS,
    TEXT_HELD_OUT,
    TEXT_LAST,
    Arm,
)
from experiments.state_tracking import runs as recall_runs
from experiments.state_tracking.runs import Program
from experiments.state_tracking.tasks import TASKS
from hybridlm.data.pipeline import Pipeline, open_pipeline
from hybridlm.data.settings import DataConfig
from hybridlm.distill.selection.branches import with_gates
from hybridlm.models.loss import token_nll
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.mixers.traced_nha import SPAN
from hybridlm.models.params import Model, Params
from hybridlm.train.optimizer import ScheduleNumbers, make_optimizer
from hybridlm.train.settings import TrainConfig
from hybridlm.train.state import init_state
from hybridlm.train.step import make_train_step

_programs: dict[str, tuple[Model, Program]] = {}


def program(arm: Arm) -> Program:
    """The arm's compiled functions; arms that differ in windows alone share them.

    `best` gives the likeliest labels on MQAR, and each target's nats, (tokens, segment_ids, targets)
    -> (N, T), on text.
    """
    key = repr((arm.task, arm.model()))
    if key not in _programs:
        _programs[key] = _built(arm)
    model, made = _programs[key]
    if NHA not in arm.layers:
        return made
    layers, spans = range(len(arm.layers)), np.asarray(arm.spans(), np.float32)

    def init(seed: jax.Array) -> Any:
        state = made.init(seed)
        params = with_gates(model, layers, state["params"], jnp.asarray(spans), SPAN)
        return {**state, "params": params}

    return made._replace(init=init)


def _built(arm: Arm) -> tuple[Model, Program]:
    model = Model.of(arm.model())
    schedule = arm.optimizer(arm.scale.steps)
    optimizer = make_optimizer(schedule, model.decay, model.muon)
    bytes_V = np.ones(arm.scale.vocab, np.float32)
    train = TrainConfig(steps=arm.scale.steps)
    step = make_train_step(model, optimizer, train, schedule, bytes_V, jnp.float32)
    init = jax.jit(lambda key: init_state(model, optimizer, key))
    best = _likeliest(model) if arm.task == MQAR else _nats(model)
    return model, Program(init, jax.jit(step, donate_argnums=0), best)


def _likeliest(model: Model) -> Any:
    @jax.jit
    def best(params: Params, tokens_NT: jax.Array, segment_ids_NT: jax.Array) -> jax.Array:
        module = model.bind(params)
        hidden_NTD = module.hidden(tokens_NT, SequenceContext.of(segment_ids_NT))
        return jnp.argmax(module.logits(hidden_NTD), axis=-1)

    return best


def _nats(model: Model) -> Any:
    @jax.jit
    def nats(params: Params, batch: dict[str, jax.Array]) -> jax.Array:
        module = model.bind(params)
        context = SequenceContext(batch["segment_ids"], batch["positions"])
        hidden_NTD = module.hidden(batch["tokens"], context)
        return token_nll(hidden_NTD, module.head_kernel(), batch["targets"])

    return nats


def run(arm: Arm, seed: int, workdir: pathlib.Path, steps: int | None = None) -> dict[str, Any]:
    """One row of the results.

    Args:
      workdir: keeps the tokens of the text.
      steps: replaces the scale's.

    Returns:
      `steps` made, `loss` (mean training loss of the last steps) and `cpu_seconds`; on MQAR `accuracy`
      at 1, 2 and 4 times the length, on text `heldout`, nats a byte.
    """
    if arm.task == MQAR:
        found = recall_runs.run(program(arm), TASKS[MQAR], seed, steps)
        names = ("accuracy_1x", "accuracy_2x", "accuracy_4x")
        return dict(zip(names, found.pop("accuracy"), strict=True)) | found
    return _run_text(arm, seed, workdir, arm.scale.steps if steps is None else steps)


def _run_text(arm: Arm, seed: int, workdir: pathlib.Path, steps: int) -> dict[str, Any]:
    begin, compiled = time.process_time(), program(arm)
    data = pipeline(arm.scale.length, arm.scale.batch, seed, workdir)
    state, numbers = (
        compiled.init(jax.random.key(seed)),
        ScheduleNumbers.of(arm.optimizer(steps), steps),
    )
    losses, waiting = [], None
    for step in range(steps):
        batch = {name: x[None] for name, x in data.batch(step).items()}
        state, metrics = compiled.step(state, batch | {"schedule": numbers})
        if waiting is not None:  # the step before: fetching this one's would wait for it
            losses.append(float(waiting))
        waiting = metrics["loss"]
    losses.append(float(waiting))
    total = count = 0.0
    for batch in data.heldout_batches(arm.scale.batch, TEXT_HELD_OUT):
        weights_NT = batch["loss_weights"]
        total += float((np.asarray(compiled.best(state["params"], batch)) * weights_NT).sum())
        count += float(weights_NT.sum())
    return {
        "steps": steps,
        "loss": round(float(np.mean(losses[-TEXT_LAST:])), 5),
        "heldout": round(total / count, 5),
        "cpu_seconds": round(time.process_time() - begin, 1),
    }


@functools.lru_cache(maxsize=8)
def pipeline(length: int, batch: int, seed: int, workdir: pathlib.Path) -> Pipeline:
    """The demo's text in sequences of this length."""
    source = dict(addresses=dict(kind="jsonl", path=TEXT_CORPUS))
    config = DataConfig(sources=source, seq_len=length, batch_size=batch)
    return open_pipeline(config, seed=seed, workdir=workdir)
