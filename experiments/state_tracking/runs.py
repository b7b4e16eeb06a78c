"""Trains one run, an arm with a task and a seed, and measures it at 1, 2 and 4 times the length."""

import functools
import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.state_tracking import arms
from experiments.state_tracking.arms import HELD_OUT, HELD_OUT_SEED, SOLVED, STEADY, TIMES, Arm
from experiments.state_tracking.tasks import Task, Words
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model, Params
from hybridlm.train.optimizer import ScheduleNumbers, make_optimizer
from hybridlm.train.state import init_state
from hybridlm.train.step import make_train_step

_programs: dict[str, "Program"] = {}


class Program(NamedTuple):
    """An arm's compiled functions; all its tasks and seeds share them."""

    init: Callable[[jax.Array], Any]
    step: Callable[[Any, dict[str, Any]], tuple[Any, dict[str, jax.Array]]]
    best: Callable[[Params, jax.Array, jax.Array], jax.Array]


def program(arm: Arm) -> Program:
    """The arm's functions: the state of a seed, a training step, the likeliest labels (N, T).

    The settings of the tasks differ in the schedule alone, which is an input of the step.
    """
    key = repr(arm.model())
    if key not in _programs:
        _programs[key] = _build(arm)
    return _programs[key]


def _build(arm: Arm) -> Program:
    model = Model.of(arm.model())
    schedule = arms.optimizer("parity")
    optimizer = make_optimizer(schedule, model.decay, model.muon)
    bytes_V = np.ones(arm.model().vocab_size, np.float32)
    step = make_train_step(model, optimizer, arms.train("parity"), schedule, bytes_V, jnp.float32)

    @jax.jit
    def best(params: Params, tokens_NT: jax.Array, segment_ids_NT: jax.Array) -> jax.Array:
        module = model.bind(params)
        hidden_NTD = module.hidden(tokens_NT, SequenceContext.of(segment_ids_NT))
        return jnp.argmax(module.logits(hidden_NTD), axis=-1)

    init = jax.jit(lambda key: init_state(model, optimizer, key))
    return Program(init, jax.jit(step, donate_argnums=0), best)


def run(
    compiled: Program,
    task: Task,
    seed: int,
    steps: int | None = None,
) -> dict[str, Any]:
    """One line of the results.

    A run ends at its budget; one of a task in `EARLY` ends earlier when the mean loss of the last
    `STEADY` steps is below `SOLVED`. The schedule of the rate is the budget's either way.

    Args:
      steps: replaces the task's own budget; at least 1.

    Returns:
      `steps` made, `loss` (nats a label, mean of the last `STEADY` steps), `accuracy` at each of
      `TIMES` and processor time in `cpu_seconds`.
    """
    budget = arms.budget(task.name, steps)
    begin = time.process_time()
    state = compiled.init(jax.random.key(seed))
    numbers = ScheduleNumbers.of(arms.optimizer(task.name, budget), budget)
    losses: list[float] = []
    waiting = None
    for step in range(budget):
        state, metrics = compiled.step(state, batch(task, seed, step) | {"schedule": numbers})
        if waiting is not None:  # the step before: fetching this one's would wait for it
            losses.append(float(waiting))
        waiting = metrics["loss"]
        steady = len(losses) >= STEADY and task.name in arms.EARLY
        if steady and np.mean(losses[-STEADY:]) < SOLVED:
            break
    losses.append(float(waiting))
    figures = accuracy(lambda *words: compiled.best(state["params"], *words), task)
    return {
        "steps": step + 1,
        "loss": round(float(np.mean(losses[-STEADY:])), 4),
        "accuracy": [round(a, 4) for a in figures],
        "cpu_seconds": round(time.process_time() - begin, 1),
    }


def accuracy(
    best: Callable[[np.ndarray, np.ndarray], Any], task: Task, count: int = HELD_OUT
) -> list[float]:
    """Share of right labels at each of `TIMES`.

    A tracked state is measured in sequences of the longest length: at positions up to the training
    length, then up to 2 times it, then up to 4 times it, each without the ones before. Recall is
    measured at its queries, in sequences of each length, with padding up to the longest.

    Args:
      best: (tokens_NT, segment_ids_NT) -> the likeliest labels (N, T).
    """
    longest = TIMES[-1] * arms.LENGTH
    ends = [n * arms.LENGTH for n in TIMES]
    if task.name != "mqar":
        words = _words(task, longest, count)
        right_NT = np.asarray(best(words.tokens_NT, np.ones_like(words.tokens_NT)))
        right_NT = right_NT == words.labels_NT
        return [
            float(right_NT[:, begin:end].mean())
            for begin, end in zip([0, *ends[:-1]], ends, strict=True)
        ]
    found = []
    for end in ends:
        words = Words(*(np.pad(x, ((0, 0), (0, longest - end))) for x in _words(task, end, count)))
        ids_NT = np.broadcast_to(np.arange(longest) < end, words.tokens_NT.shape).astype(np.int32)
        right_NT = np.asarray(best(words.tokens_NT, ids_NT)) == words.labels_NT
        found.append(float((right_NT * words.weights_NT).sum() / words.weights_NT.sum()))
    return found


@functools.lru_cache(maxsize=16)
def _words(task: Task, length: int, count: int) -> Words:
    return task.sample(_rng(task, HELD_OUT_SEED, length), count, length)


def _rng(task: Task, seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(task.name.encode()), seed, index])


def batch(task: Task, seed: int, step: int) -> dict[str, np.ndarray]:
    """The training step's batch, of one micro-batch; the same for all arms."""
    words = task.sample(_rng(task, seed, step), arms.BATCH, arms.LENGTH)
    positions_NT = np.tile(np.arange(arms.LENGTH, dtype=np.int32), (arms.BATCH, 1))
    batch = {
        "tokens": words.tokens_NT,
        "targets": words.labels_NT,
        "loss_weights": words.weights_NT,
        "segment_ids": np.ones_like(positions_NT),
        "positions": positions_NT,
    }
    return {name: x[None] for name, x in batch.items()}
