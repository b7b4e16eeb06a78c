"""Measures a model: accuracy by distance, losses by kind of token, and attention heads."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.large_window_laziness import stream
from experiments.large_window_laziness.stream import CopyTask
from hybridlm.models.loss import token_nll
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model, Params
from hybridlm.models.programs import per_model
from hybridlm.probes import Prompt, Prompts, heads_at_once

HELD_OUT = 10**6  # seed of the held-out sequences, the same for all runs
EACH, PROMPTS, AT_ONCE = 32, 32, 16  # sequences of each of two kinds; needles; batch size

Record = dict[str, Any]


def measure(task: CopyTask, model: Model, params: Params, window: int | None) -> Record:
    """One line of a run's curve.

    `accuracy`: share of the copied tokens that the model ranks first, by distance in `task.bins`.
    `local_nll`, `copied_nll`: nats per token of local text, and of copies without their first
    token. `heads`: [layer, head, mass, copy, entropy] of each attention head (see
    `hybridlm.probes`), on needles at the largest distances.

    Args:
      window: replaces that of the attention mixers that have one; None keeps their own.
    """
    held_out, kind_NT, distance_NT = _held_out(task)
    nll_NT, right_NT = _tokens(model, params, held_out, window)
    copied_NT = kind_NT == stream.COPIED_TOKEN
    by_distance = [copied_NT & (distance_NT >= a) & (distance_NT <= b) for a, b in task.bins]
    scores, entropies = heads_at_once(model, params, needles(task, window), batch=AT_ONCE)
    return {
        "accuracy": [round(float(right_NT[chosen].mean()), 4) for chosen in by_distance],
        "local_nll": round(float(nll_NT[kind_NT == stream.LOCAL_TOKEN].mean()), 4),
        "copied_nll": round(float(nll_NT[copied_NT].mean()), 4),
        "heads": [
            [s.layer, s.head, round(s.mass, 4), round(s.copy, 4), round(e.entropy, 4)]
            for s, e in zip(scores, entropies, strict=True)
        ],
    }


@functools.cache
def _held_out(task: CopyTask) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """A batch, with the kind and the distance of each target; half of it has many far copies."""
    near, far = (stream.sequences(task, HELD_OUT, 0, EACH, power) for power in (1.0, 0.0))
    both = stream.Sequences(*(np.concatenate(parts) for parts in zip(near, far)))
    batch = stream.batch(both)
    kind_NT = np.roll(both.kind_NT, -1, axis=1)
    kind_NT[:, -1] = -1
    return batch, kind_NT, np.roll(both.distance_NT, -1, axis=1)


@functools.cache
def needles(task: CopyTask, window: int | None) -> Prompts:
    """Sequences that end with a far copy; its source is the needle, its first token the query."""
    found, first, far = [], EACH, task.bins[-1]
    while len(found) < PROMPTS:
        made = stream.sequences(task, HELD_OUT, first, stream.AT_ONCE, 0.0)
        first += stream.AT_ONCE
        for tokens_T, kind_T, distance_T in zip(*made):
            starts = np.flatnonzero(
                (kind_T == stream.COPY_START) & (distance_T >= far[0]) & (distance_T <= far[1])
            )
            starts = starts[starts + task.span <= task.length]
            if len(starts) and len(found) < PROMPTS:
                start = int(starts[-1])
                source, end = start - int(distance_T[start]), start + task.span
                needle = (source + 1, source + task.span)
                found.append(Prompt(tokens_T[:end], [needle], (start + 1, end)))
    made = Prompts.of(found, task.length)
    return Prompts(
        made.tokens_NT, made.segment_ids_NT, made.positions_NT, made.rows_NQ, made.needle_NT, window
    )


def _tokens(
    model: Model, params: Params, batch: dict[str, np.ndarray], window: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """(nats, whether the model ranks it first) of each target."""
    program = _program(model, jnp.float32)
    bound = None if window is None else np.int32(window)
    parts = []
    for start in range(0, len(batch["tokens"]), AT_ONCE):
        part = {name: x[start : start + AT_ONCE] for name, x in batch.items()}
        parts.append(jax.device_get(program(params, part, bound)))
    nll_NT, right_NT = (np.concatenate(xs) for xs in zip(*parts))
    return nll_NT, right_NT


@per_model
def _program(model: Model, dtype: jnp.dtype):

    @jax.jit
    def run(params: Params, batch: dict[str, jax.Array], window: jax.Array | None):
        module = model.bind(params)
        context = SequenceContext(batch["segment_ids"], batch["positions"], window)
        hidden_BTD = module.hidden(batch["tokens"], context, dtype=dtype)
        nll_BT = token_nll(hidden_BTD, module.head_kernel(), batch["targets"])
        return nll_BT, jnp.argmax(module.logits(hidden_BTD), axis=-1) == batch["targets"]

    return run
