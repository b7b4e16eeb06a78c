"""Selectors that score each layer once and keep the highest scores, and the baselines."""

import dataclasses
import math
import random
from collections.abc import Sequence

from hybridlm.distill.selection.budget import Budget
from hybridlm.distill.selection.evaluations import Search
from hybridlm.distill.selection.noise import difference
from hybridlm.distill.selection.selection import (
    Selection,
    Selector,
    SelectorSettings,
    cut,
    diverged_note,
    diverging_alone,
    one_more,
    words,
)
from hybridlm.errors import UserError

EPSILON, CAP = 1e-10, 50.0  # HALO's code; the paper has 1e-6 and no cap


def halo_scores(recall: Sequence[float], commonsense: Sequence[float]) -> list[float]:
    """HALO's importance of each layer: min(50, (max R - R_i) / (max C - C_i + 1e-10)).

    A layer is important if replacing it costs recall and little else. The maxima are those of the
    columns, not the teacher's scores.

    Args:
      recall, commonsense: R_i and C_i, scores of the model with layer i alone replaced.

    Source: arXiv 2601.22156, and layer_analysis.py of its code.
    """
    best_r, best_c = max(recall), max(commonsense)
    return [
        min(CAP, (best_r - r) / (best_c - c + EPSILON))
        for r, c in zip(recall, commonsense, strict=True)
    ]


def _halo(search: Search, budget: Budget, settings: SelectorSettings) -> Selection:
    recall, finite = _single_swaps(search, settings.recall)
    commonsense, also = _single_swaps(search, settings.commonsense)
    finite = [layer for layer in finite if layer in also]
    _check_some(finite, "halo")

    def scores(mean) -> list[float]:
        return halo_scores(
            [mean(recall[i]) for i in finite], [mean(commonsense[i]) for i in finite]
        )

    found = dict(zip(finite, scores(_mean)))
    sets = min(len(recall[finite[0]]), len(commonsense[finite[0]]))
    by_set = [dict(zip(finite, scores(lambda v, s=s: v[s]))) for s in range(sets)]
    return _with_diverged("halo", search, found, by_set, budget)


def _recall(search: Search, budget: Budget, settings: SelectorSettings) -> Selection:
    recall, finite = _single_swaps(search, settings.recall)
    _check_some(finite, "recall")
    best = max(_mean(recall[i]) for i in finite)
    found = {i: best - _mean(recall[i]) for i in finite}
    by_set = [{i: best - recall[i][s] for i in finite} for s in range(len(recall[finite[0]]))]
    return _with_diverged("recall", search, found, by_set, budget)


def _kl_once(search: Search, budget: Budget, settings: SelectorSettings) -> Selection:
    alone = {i: search.quality(frozenset({i}), "kl") for i in search.layers}
    kept = frozenset[int]()  # in every model that is scored
    if any(map(math.isnan, alone.values())):
        kept = frozenset(diverging_alone(search, "kl"))
    models = {i: kept | {i} for i in search.layers if i not in kept}
    found = {i: search.quality(model, "kl") for i, model in models.items()}
    finite = [i for i, quality in found.items() if not math.isnan(quality)]
    if not finite:
        raise UserError(f"kl_once: no model that keeps {one_more(sorted(kept))} has a finite KL")
    values = {i: search.qualities(models[i], "kl") for i in finite}
    notes = (diverged_note(sorted(kept)),) if kept else ()
    last = [i for i in found if i not in values]
    if last:
        notes += (
            f"the model diverges where layer {words(last)} alone is restored, so the lowest score is"
            " given",
        )
    infinite = dict.fromkeys(kept, math.inf) | dict.fromkeys(last, -math.inf)
    scores = {i: (found | infinite)[i] for i in search.layers}
    sets = range(len(values[finite[0]]))
    by_set = [{i: v[s] for i, v in values.items()} | infinite for s in sets]
    return _noted(cut("kl_once", scores, budget, notes), by_set)


def _gates(search: Search, budget: Budget, settings: SelectorSettings) -> Selection:
    if search.gates is None:
        raise UserError("gates are trained on a teacher and a student: a table of scores has none")
    for kept in (search.all, frozenset[int]()):
        if budget.share == float(bool(kept)) and budget.fits(kept):
            return Selection("gates", tuple(sorted(kept)))  # nothing to choose
    alphas, notes = search.gates(budget.share)
    return cut("gates", alphas, budget, tuple(notes))


def _uniform(search: Search, budget: Budget, settings: SelectorSettings) -> Selection:
    n = len(search.layers)
    for count in range(n, -1, -1):
        kept = tuple(search.layers[i * n // count] for i in range(count))
        if budget.fits(kept):
            return Selection("uniform", kept)
    raise AssertionError("a budget allows replacing every layer")


def _random(search: Search, budget: Budget, settings: SelectorSettings) -> Selection:
    order = list(search.layers)
    random.Random(settings.seed).shuffle(order)
    return Selection("random", tuple(sorted(budget.cut(order))), tuple(order))


def _single_swaps(search: Search, metric: str) -> tuple[dict[int, tuple[float, ...]], list[int]]:
    """Qualities by the layer that is replaced alone, and the layers whose models did not diverge."""
    values = {i: search.qualities(search.all - {i}, metric) for i in search.layers}
    finite = [i for i in search.layers if not math.isnan(search.quality(search.all - {i}, metric))]
    return values, finite


def _check_some(finite: list[int], method: str) -> None:
    if not finite:
        raise UserError(f"{method}: no model with a single layer replaced has a finite score")


def _with_diverged(
    method: str,
    search: Search,
    scores: dict[int, float],
    by_set: list[dict[int, float]],
    budget: Budget,
) -> Selection:
    """The cut, in which layers whose replacement diverged come first: they cannot be replaced."""
    diverged = [i for i in search.layers if i not in scores]
    notes: tuple[str, ...] = ()
    if diverged:
        notes = (diverged_note(diverged),)
    infinite = {i: math.inf for i in diverged}
    selection = cut(method, {i: {**scores, **infinite}[i] for i in search.layers}, budget, notes)
    return _noted(selection, [{**s, **infinite} for s in by_set])


def _noted(selection: Selection, by_set: list[dict[int, float]]) -> Selection:
    """Says whether the difference across the cut lies within noise."""
    kept = [i for i in selection.order if i in selection.kept]
    left = [i for i in selection.order if i not in selection.kept]
    if not kept or not left or len(by_set) < 2:
        return selection
    last, first = kept[-1], left[0]
    found = difference([s[last] for s in by_set], [s[first] for s in by_set])
    if not found.holds_zero:
        return selection
    note = f"layer {last} (kept) and layer {first} (not) differ by {found}, which is within noise"
    return dataclasses.replace(selection, notes=(*selection.notes, note))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


HALO = Selector(
    "halo",
    "recall lost over short-context quality lost, with one layer replaced",
    "min(50, (max R - R_i) / (max C - C_i + 1e-10)) of the models with layer i alone replaced, highest"
    " scores kept; L evaluations of each metric; arXiv 2601.22156 and its code",
    _halo,
    lambda s: (s.recall, s.commonsense),
    single=True,
)
RECALL = Selector(
    "recall",
    "recall lost with one layer replaced",
    "max R - R_i, highest scores kept: the score of Jet-Nemotron as HALO's code has it",
    _recall,
    lambda s: (s.recall,),
    single=True,
)
KL_ONCE = Selector(
    "kl_once",
    "fall of the KL when one layer alone is restored",
    "layers in the order of KL(teacher, student with layer i alone restored), lowest kept; the ranking"
    " of the code of arXiv 2512.20569, without its training for each layer",
    _kl_once,
    lambda s: ("kl",),
    single=True,
)
GATES = Selector(
    "gates",
    "gates between both mixers of every layer, trained together on synthetic retrieval",
    "alpha of every layer, with all weights frozen and the sum of alphas in the loss, weighted so that"
    " their mean nears the budget's share; the largest kept; arXiv 2606.30562 (FlashMorph)",
    _gates,
)
UNIFORM = Selector(
    "uniform",
    "layers at equal distances, the lowest first",
    "layers floor(i L / k), i = 0 to k - 1",
    _uniform,
    single=True,
)
RANDOM = Selector("random", "layers drawn by --seed", "a permutation by seed", _random, single=True)
