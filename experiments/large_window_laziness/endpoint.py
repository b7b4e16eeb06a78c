"""What is measured once, at the end of a run: where retrieval sits, and how far it reaches."""

import dataclasses
import math
from typing import Any

import numpy as np

from experiments.large_window_laziness import stream
from experiments.large_window_laziness.arms import LENGTHS, Arm
from experiments.large_window_laziness.measure import (
    FAR_TOKENS,
    at_once,
    far_sequences,
    needles,
    targets,
    tokens,
)
from hybridlm.models.params import Model, Params
from hybridlm.probes import (
    Head,
    Prompt,
    Prompts,
    gradient_influence,
    head_masking,
    mixer_names,
    receptive_field,
    retrieval_heads,
    top_heads,
)

VERSION = 2  # of these measurements; tables take ends of this one alone
TOP_HEADS = 2  # heads that are masked together
RANDOM_DRAWS = 10  # of as many of the other heads in the same layers; fewer if there are fewer sets
INFLUENCES = 64  # sequences behind the gradient influence


def endpoint(arm: Arm, model: Model, params: Params) -> dict[str, Any]:
    """The figures of `done.json`, with the version of their measurements.

    `restricted`: by layers ("full", "local") and receptive field in tokens, the accuracy on far
    copies. `masked`: the accuracy without the heads of the largest mass in `arm.searched`
    (`retrieval`), and without as many random others of the same layers (`random`, the mean of the
    draws). `lengths`: by multiple
    of the training length, the accuracy on copies from half that length back or further.
    `influence`: [first, last, G] by distance (arXiv 2606.15378; see `hybridlm.probes.gradients`).
    Each accuracy is over at least `FAR_TOKENS` tokens. Recurrences have no window: they run on the
    last tokens alone. Full attention in the window's place sees all of longer sequences, too.
    """
    task, batch = arm.scale.task, at_once(arm.scale.task)
    names = mixer_names(model)
    prompts = needles(task, -(-FAR_TOKENS // (task.span - 1)), arm.final)
    restricted: dict[str, dict[str, float]] = {}
    for group in ("full", "local"):
        layers = [i for i, name in enumerate(names) if name == group]
        found = receptive_field(
            model,
            params,
            prompts,
            layers,
            arm.scale.windows[:-1],
            truncate=group == "local" and arm.final is None,
            batch=batch,
        )
        restricted[group] = {
            str(e.window or arm.scale.windows[-1]): round(e.accuracy, 4) for e in found
        }
    scores = retrieval_heads(model, params, needles(task, 64, arm.final), batch=batch)
    entries = tuple(entry for entry in scores if entry.layer in arm.searched)
    heads = top_heads(dataclasses.replace(scores, entries=entries), TOP_HEADS)
    masked: dict[str, list[float]] = {"none": [], "retrieval": [], "random": []}
    others = sum(Head(s.layer, s.head) not in heads for s in entries)
    draws = min(RANDOM_DRAWS, math.comb(others, len(heads)))  # the only set once
    options = dict(draws=draws, layers=arm.searched, batch=batch)
    for entry in head_masking(model, params, prompts, heads, **options):
        masked[entry.which].append(entry.accuracy)
    return {
        "version": VERSION,
        "restricted": restricted,
        "masked": {which: round(float(np.mean(a)), 4) for which, a in masked.items() if a},
        "masked_heads": [[head.layer, head.head] for head in heads],
        "lengths": {str(n): _at_length(arm, model, params, n) for n in LENGTHS},
        "influence": _influence(arm, model, params),
    }


def _at_length(arm: Arm, model: Model, params: Params, times: int) -> float:
    """Accuracy on the furthest copies of sequences that are `times` as long as in training."""
    task = arm.scale.task
    task = task._replace(length=times * task.length)
    held_out = far_sequences(task)
    _, right_NT = tokens(model, params, stream.batch(held_out), arm.final)
    kind_NT, _ = targets(held_out)
    return round(float(right_NT[kind_NT == stream.COPIED_TOKEN].mean()), 4)


def _influence(arm: Arm, model: Model, params: Params) -> list[list[float]]:
    task = arm.scale.task
    made = stream.sequences(task, 10**6 + 2, 0, INFLUENCES)
    length = task.length
    prompts = Prompts.of([Prompt(row, [], (length - 1, length)) for row in made.tokens_NT])
    prompts = Prompts(
        prompts.tokens_NT,
        prompts.segment_ids_NT,
        prompts.positions_NT,
        prompts.rows_NQ,
        prompts.needle_NT,
        arm.final,
    )
    found = gradient_influence(model, params, prompts, batch=at_once(task))
    return [[e.first, e.last, float(f"{e.influence:.4g}")] for e in found]
