"""Measurements on held-out text: gain on repeats by distance, needles, heads, longer sequences."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from experiments.large_window_laziness import measure, stream
from experiments.large_window_laziness.text import corpus as texts
from experiments.large_window_laziness.text.arms import TextArm, TextScale
from experiments.large_window_laziness.text.corpus import CONTEXT, Corpus, Labels, Spliced
from hybridlm.errors import UserError
from hybridlm.models.params import Model, Params
from hybridlm.probes import (
    Prompt,
    Prompts,
    answers,
    head_masking,
    heads_at_once,
    mixer_names,
    receptive_field,
    retrieval_heads,
    top_heads,
)

ANSWER = 16  # tokens of a copy that are asked for, at most
TOP_HEADS = 4  # heads that are masked together; at most half of those of `TextArm.searched`
RANDOM_DRAWS = 5  # of as many of the other heads in the same layers
DIGITS = 6  # of a needle

Record = dict[str, Any]


class HeldOut(NamedTuple):
    """What all measurements of a scale read; made once."""

    corpus: Corpus
    scale: TextScale
    rows: Spliced
    labels: Labels
    copies: Prompts
    needles: tuple[Prompts, ...]

    @classmethod
    def of(cls, corpus: Corpus, scale: TextScale) -> "HeldOut":
        """Raises `UserError` if the held-out text gives no copy from the furthest distances."""
        rows = texts.held_out(corpus, scale, scale.rows)
        labels = texts.labels(rows)
        needles = tuple(_needles(corpus, scale, *bounds) for bounds in scale.bins[1:])
        return cls(corpus, scale, rows, labels, _copies(rows, labels, scale), needles)


def during(made: HeldOut, model: Model, params: Params, window: int) -> Record:
    """One line of a run's curve.

    `spliced` and `natural`: by distance (`TextScale.bins`), `gain`, the nats by which a repeat is
    likelier than the same token at the earlier place, which is no repeat itself; `accuracy`, the
    share of repeats that the model ranks first; and `tokens`, their number. NaN without tokens.
    `plain_nll`: nats per token that is no repeat. `heads`: [layer, head, mass, copy, entropy] on
    spliced copies from the furthest distances (see `hybridlm.probes`).
    """
    nll_NT, right_NT = _targets(model, params, made.rows, window)
    labels = made.labels
    record: Record = {
        kind: _by_distance(nll_NT, right_NT, labels, chosen_NT, made.scale.bins)
        for kind, chosen_NT in (("spliced", labels.spliced_NT), ("natural", labels.natural_NT))
    }
    record["plain_nll"] = round(float(nll_NT[labels.plain_NT].mean()), 4)
    scores, entropies = heads_at_once(model, params, _seen(made.copies, window), batch=4)
    record["heads"] = [
        [s.layer, s.head, *(round(x, 4) for x in (s.mass, s.copy, e.entropy))]
        for s, e in zip(scores, entropies, strict=True)
    ]
    return record


def at_end(made: HeldOut, arm: TextArm, model: Model, params: Params) -> Record:
    """The figures of `done.json`.

    `restricted`: by layers and receptive field, the accuracy on spliced copies from the furthest
    distances; window layers are bounded by the input that sets their window. `masked`: the same
    without the heads of the largest mass in `arm.searched`, and without random others of the same
    layers (mean of the draws): a window's heads cannot retrieve from beyond it. `needles`:
    by distance, nats and accuracy of a value whose key was given before. `longer`: at twice the
    training length, nats of tokens that are no repeat up to the training length and beyond it, and
    the gain on spliced copies from further back than that length.
    """
    copies, names = _seen(made.copies, arm.window), mixer_names(model)
    full = [i for i, name in enumerate(names) if name == "full"]
    found = receptive_field(model, params, copies, full, arm.scale.windows, batch=4)
    whole = str(arm.scale.length)
    restricted = {
        "full": {str(e.window or whole): round(e.accuracy, 4) for e in found},
        "local": {},
    }
    for window in (*arm.scale.windows, 2 * arm.scale.length):
        seen = _seen(made.copies, min(window, arm.window))
        accuracy = answers(model, params, seen, batch=4).accuracy
        restricted["local"][str(min(window, arm.scale.length))] = round(accuracy, 4)
    scores = retrieval_heads(model, params, copies, batch=4)
    entries = tuple(entry for entry in scores if entry.layer in arm.searched)
    heads = top_heads(
        dataclasses.replace(scores, entries=entries), min(TOP_HEADS, len(entries) // 2)
    )
    masked: dict[str, list[float]] = {}
    options = dict(draws=RANDOM_DRAWS, layers=arm.searched, batch=4)
    for entry in head_masking(model, params, copies, heads, **options):
        masked.setdefault(entry.which, []).append(entry.accuracy)
    needles = [answers(model, params, _seen(p, arm.window), batch=4) for p in made.needles]
    return {
        "restricted": restricted,
        "masked": {which: round(float(np.mean(a)), 4) for which, a in masked.items()},
        "masked_heads": [[head.layer, head.head] for head in heads],
        "needles": {
            "nll": [round(a.nll, 4) for a in needles],
            "accuracy": [round(a.accuracy, 4) for a in needles],
        },
        "longer": _longer(made, arm, model, params),
    }


def _longer(made: HeldOut, arm: TextArm, model: Model, params: Params) -> Record:
    scale = made.scale
    rows = texts.held_out(made.corpus, scale, max(scale.rows // 2, 1), times=2)
    labels, beyond = texts.labels(rows), scale.length
    nll_NT, right_NT = _targets(model, params, rows, arm.window)
    at_T = np.arange(2 * beyond)
    far = ((beyond, 2 * beyond - 1),)
    within, outside = (
        float(nll_NT[labels.plain_NT & side_T].mean()) for side_T in (at_T < beyond, at_T >= beyond)
    )
    return {
        "plain_nll_within": round(within, 4),
        "plain_nll_beyond": round(outside, 4),
        "spliced": _by_distance(nll_NT, right_NT, labels, labels.spliced_NT, far),
    }


def _by_distance(nll_NT, right_NT, labels: Labels, chosen_NT, bins) -> Record:
    """Gain, accuracy and number of the chosen repeats by distance."""
    row, at = np.nonzero(chosen_NT)
    distance = labels.nearest_NT[row, at]
    before = labels.plain_NT[row, at - distance]
    gain = nll_NT[row, at - distance] - nll_NT[row, at]
    found: Record = {"gain": [], "accuracy": [], "tokens": []}
    for first, last in bins:
        own = (distance >= first) & (distance <= last)
        found["gain"].append(_mean(gain[own & before]))
        found["accuracy"].append(_mean(right_NT[row, at][own]))
        found["tokens"].append(int(own.sum()))
    return found


def _mean(values: np.ndarray) -> float:
    return round(float(values.mean()), 4) if len(values) else float("nan")


def _targets(model: Model, params: Params, rows: Spliced, window: int):
    """(nats, whether it ranks first) of each token, (N, T); the first has 0."""
    batch = stream.batch(rows.as_sequences())
    nll_NT, right_NT = measure.tokens(model, params, batch, window)
    nll_NT, right_NT = (np.roll(x, 1, axis=1) for x in (nll_NT, right_NT))
    nll_NT[:, 0], right_NT[:, 0] = 0, False
    return nll_NT, right_NT


def _copies(rows: Spliced, labels: Labels, scale: TextScale) -> Prompts:
    """Sequences up to the end of a spliced copy from the furthest distances.

    The answer is the copy without its first `CONTEXT` tokens, and the needle is what it copies.
    """
    (near, far), found = scale.bins[-1], []
    for tokens_T, distance_T, age_T, copied_T in zip(*rows, labels.spliced_NT):
        for start in np.flatnonzero(age_T == CONTEXT):
            distance, size = int(distance_T[start]), 0
            while size < ANSWER and start + size < scale.length and copied_T[start + size]:
                size += 1
            if size and near <= distance <= far:
                needle = (start - distance, start - distance + size)
                found.append(Prompt(tokens_T[: start + size], [needle], (start, start + size)))
    if not found:
        raise UserError(
            f"no copy in the {len(rows.tokens_NT)} held-out sequences is {near} to {far} tokens from"
            " its source: more held-out text is needed, so install more Python packages"
        )
    return Prompts.of(found[: scale.prompts], scale.length)


def _needles(corpus: Corpus, scale: TextScale, nearest: int, furthest: int) -> Prompts:
    """Held-out text with a line `key = "digits"`, and at the end its key again, and the digits."""
    encode, found = corpus.tokenizer.encode, []
    tail = encode('"\n')
    for index in range(scale.prompts):
        rng = np.random.default_rng([10**6 + 1, nearest, index])
        key = encode(f'\nkey_{rng.integers(100, 1000)} = "')
        value = encode(str(rng.integers(10 ** (DIGITS - 1), 10**DIGITS)))
        line = np.concatenate([key, value, tail])
        most = min(furthest, scale.length - len(line))
        distance = int(rng.integers(max(nearest, len(line)), most + 1))
        row = len(corpus.held_out) // scale.length - 1 - index % (scale.rows or 1)
        text_T = np.asarray(corpus.held_out[row * scale.length :][: scale.length], np.int32)
        end = scale.length
        tokens_T = text_T.copy()
        tokens_T[end - len(key) - len(value) :] = np.concatenate([key, value])
        first = end - len(value) - distance  # the value's first token
        tokens_T[first - len(key) : first + len(value) + len(tail)] = line
        found.append(Prompt(tokens_T, [(first, first + len(value))], (end - len(value), end)))
    return Prompts.of(found, scale.length)


def _seen(prompts: Prompts, window: int) -> Prompts:
    """The prompts with the window that window layers take from their input."""
    return Prompts(
        prompts.tokens_NT,
        prompts.segment_ids_NT,
        prompts.positions_NT,
        prompts.rows_NQ,
        prompts.needle_NT,
        window,
    )
