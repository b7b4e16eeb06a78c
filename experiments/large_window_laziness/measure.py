"""Measures a model: accuracy by distance, losses by kind of token, and attention heads."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.large_window_laziness import stream
from experiments.large_window_laziness.stream import CopyTask, Sequences
from hybridlm.models.loss import token_nll
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model, Params
from hybridlm.models.programs import per_model
from hybridlm.probes import Prompt, Prompts, heads_at_once

HELD_OUT = 10**6  # seed of the held-out sequences, the same for all runs
FAR_TOKENS = 1000  # least number of tokens behind an accuracy at the largest distances
EACH, PROMPTS = 64, 64  # log-uniform sequences; needles for the heads' scores
AT_ONCE = 4096  # tokens of a batch

Record = dict[str, Any]


def measure(task: CopyTask, model: Model, params: Params, window: int | None) -> Record:
    """One line of a run's curve.

    `accuracy`: share of the copied tokens that the model ranks first, by distance in `task.bins`;
    the last is measured on at least `FAR_TOKENS` tokens. `local_nll`, `copied_nll`: nats per token
    of local text, and of copies without their first token. `heads`: [layer, head, mass, copy,
    entropy] of each attention head (see `hybridlm.probes`), on copies at the largest distances;
    mass is on every place where the answer stands.

    Args:
      window: replaces that of the attention mixers that have one; None keeps their own.
    """
    held_out, count = _held_out(task)
    nll_NT, right_NT = tokens(model, params, stream.batch(held_out), window)
    kind_NT, distance_NT = targets(held_out)
    copied_NT = kind_NT == stream.COPIED_TOKEN
    by_distance = [copied_NT & (distance_NT >= a) & (distance_NT <= b) for a, b in task.bins]
    even_NT = np.arange(len(kind_NT))[:, None] < count
    scores, entropies = heads_at_once(
        model, params, needles(task, PROMPTS, window), batch=at_once(task)
    )
    return {
        "accuracy": [round(float(right_NT[chosen].mean()), 4) for chosen in by_distance],
        "far_tokens": int(by_distance[-1].sum()),
        "local_nll": round(float(nll_NT[even_NT & (kind_NT == stream.LOCAL_TOKEN)].mean()), 4),
        "copied_nll": round(float(nll_NT[even_NT & copied_NT].mean()), 4),
        "heads": [
            [s.layer, s.head, round(s.mass, 4), round(s.copy, 4), round(e.entropy, 4)]
            for s, e in zip(scores, entropies, strict=True)
        ],
    }


def at_once(task: CopyTask) -> int:
    """Sequences of a batch."""
    return max(AT_ONCE // task.length, 1)


@functools.cache
def _held_out(task: CopyTask) -> tuple[Sequences, int]:
    """`EACH` log-uniform sequences, then as many with far copies only as `FAR_TOKENS` needs."""
    even = stream.sequences(task, HELD_OUT, 0, EACH)
    return joined(even, far_sequences(task)), EACH


@functools.cache
def far_sequences(task: CopyTask) -> Sequences:
    """Sequences whose copies lie in the last of `task.bins`, with at least `FAR_TOKENS` tokens."""
    far = task._replace(closest=task.bins[-1][0])
    made, found = stream.sequences(far, HELD_OUT, 0, stream.AT_ONCE, 0.0), 0
    while True:
        counts = np.cumsum((made.kind_NT == stream.COPIED_TOKEN).sum(axis=1))
        if counts[-1] >= FAR_TOKENS:
            found = int(np.searchsorted(counts, FAR_TOKENS)) + 1
            return made.take(np.arange(found))
        more = stream.sequences(far, HELD_OUT, len(made.kind_NT), stream.AT_ONCE, 0.0)
        made = joined(made, more)


def joined(a: Sequences, b: Sequences) -> Sequences:
    """The sequences of both."""
    return Sequences(*(np.concatenate(parts) for parts in zip(a, b)))


def targets(held_out: Sequences) -> tuple[np.ndarray, np.ndarray]:
    """(kind, distance) of each position's target, (N, T); the last position has kind -1."""
    kind_NT = np.roll(held_out.kind_NT, -1, axis=1)
    kind_NT[:, -1] = -1
    return kind_NT, np.roll(held_out.distance_NT, -1, axis=1)


@functools.cache
def needles(task: CopyTask, count: int, window: int | None) -> Prompts:
    """Sequences that end with a copy at the largest distances; its first token is the query.

    The needle is every earlier token that equals one of the answer's: the answer may have been
    copied before, and a head that reads any of these places retrieves it.
    """
    found, first, (near, _) = [], 0, task.bins[-1]
    far = task._replace(closest=near)
    while len(found) < count:
        made = stream.sequences(far, HELD_OUT + 1, first, stream.AT_ONCE, 0.0)
        first += stream.AT_ONCE
        for tokens_T, kind_T in zip(made.tokens_NT, made.kind_NT):
            starts = np.flatnonzero(kind_T == stream.COPY_START)
            starts = starts[starts + task.span <= task.length]
            if len(starts) and len(found) < count:
                start = int(starts[-1])
                end = start + task.span
                places = np.flatnonzero(np.isin(tokens_T[:start], tokens_T[start + 1 : end]))
                spans = [(int(t), int(t) + 1) for t in places]
                found.append(Prompt(tokens_T[:end], spans, (start + 1, end)))
    made = Prompts.of(found, task.length)
    return Prompts(
        made.tokens_NT, made.segment_ids_NT, made.positions_NT, made.rows_NQ, made.needle_NT, window
    )


def tokens(
    model: Model, params: Params, batch: dict[str, np.ndarray], window: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """(nats, whether the model ranks it first) of each target, (N, T)."""
    program = _program(model, jnp.float32)
    bound = None if window is None else np.int32(window)
    count, length = batch["tokens"].shape
    size, parts = max(AT_ONCE // length, 1), []
    for start in range(0, count, size):
        # Padded to one shape, so that one program serves all.
        rows = np.minimum(np.arange(start, start + size), count - 1)
        parts.append(jax.device_get(program(params, {n: x[rows] for n, x in batch.items()}, bound)))
    nll_NT, right_NT = (np.concatenate(xs)[:count] for xs in zip(*parts))
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
