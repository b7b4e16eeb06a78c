"""Selectors that evaluate sets of layers: DtR's greedy, KL-guided addition, exhaustive."""

import math
from collections.abc import Iterator

from hybridlm.distill.selection.budget import Budget, Kept
from hybridlm.distill.selection.evaluations import Search
from hybridlm.distill.selection.noise import difference
from hybridlm.distill.selection.selection import (
    Selection,
    Selector,
    SelectorSettings,
    Step,
    diverged_note,
    diverging_alone,
    one_more,
    words,
)
from hybridlm.errors import UserError

MAX_DROP = 0.05  # of Distill-then-Replace's trade-off study


def _greedy(search: Search, budget: Budget | None, settings: SelectorSettings) -> Selection:
    """Replaces layers one by one, each time the one whose model scores best.

    A budget ends the search when it is met; without one, P_min does.
    """
    metric, current = settings.metric, search.all
    quality = search.quality(current, metric)
    if math.isnan(quality):
        raise UserError(f"greedy: the teacher's own {metric} is not a number")
    p_min = _p_min(search, quality, budget, settings)
    best = opt = (current, quality)
    path, removed, notes = [_step(search, current, metric)], [], []
    shortlist = _Shortlist(settings.shortlist)
    while current and not (budget is not None and budget.fits(current)):
        asked = shortlist.of(sorted(current))
        scored = {i: search.quality(current - {i}, metric) for i in asked}
        shortlist.note(scored, search.quality(current, metric))
        finite = {i: q for i, q in scored.items() if not math.isnan(q)}
        diverged = [i for i in scored if i not in finite]
        if diverged and not removed:
            notes.append(f"the model diverges where layer {words(diverged)} is replaced")
        if not finite:
            break
        layer = max(finite, key=lambda i: (finite[i], -i))
        if finite[layer] >= best[1]:
            best = (current - {layer}, finite[layer])
        if finite[layer] < p_min:
            break
        notes += _close(search, current, layer, finite, metric)
        current -= {layer}
        opt = (current, finite[layer])
        removed.append(layer)
        path.append(_step(search, current, metric))
    if budget is not None and not budget.fits(opt[0]):
        raise UserError(
            f"greedy stops with {len(opt[0])} layers kept, because replacing another makes {metric}"
            f" worse than P_min or not a number, and the budget is {budget.text}: raise the budget or"
            " relax --min_score"
        )
    chosen = opt if budget is not None or settings.take == "opt" else best
    never = [i for i in search.layers if i not in removed]
    order = (*never, *reversed(removed))
    if budget is None:
        for name, (kept, q) in (("M_best", best), ("M_opt", opt)):
            notes.append(
                f"{name} keeps layers {words(sorted(kept))} with {metric} {_shown(search, metric, q)}"
            )
    return Selection("greedy", tuple(sorted(chosen[0])), order, {}, tuple(path), tuple(notes))


class _Shortlist:
    """The layers that a round evaluates: all, or those that gained most when last evaluated.

    A layer's gain is the change of quality of its swap. The first round evaluates all layers.
    """

    def __init__(self, size: int | None):
        self._size, self._gains = size, dict[int, float]()

    def of(self, layers: list[int]) -> list[int]:
        """The ones to evaluate of `layers`, in ascending order."""
        if self._size is None:
            return layers
        new = [i for i in layers if i not in self._gains]
        known = sorted(set(layers) - set(new), key=lambda i: (-self._gains[i], i))
        return sorted([*new, *known[: max(self._size - len(new), 0)]])

    def note(self, found: dict[int, float], before: float) -> None:
        """Remembers the gains of a round; none where the model before it diverged."""
        if not math.isnan(before):
            self._gains |= {i: _lowest_if_nan(q - before) for i, q in found.items()}


def _p_min(
    search: Search, teacher: float, budget: Budget | None, settings: SelectorSettings
) -> float:
    """The lowest quality that greedy accepts."""
    if settings.min_score is not None:
        return search.metrics[settings.metric].quality(settings.min_score)
    drop = settings.max_drop
    if drop is None and budget is not None:
        return -math.inf
    drop = MAX_DROP if drop is None else drop
    if teacher == 0:
        raise UserError(
            f"greedy: a share of the teacher's {settings.metric}, which is 0, is no bound: give"
            " --min_score, or a budget"
        )
    return teacher - drop * abs(teacher)


def _kl(search: Search, budget: Budget, settings: SelectorSettings) -> Selection:
    """Restores layers one by one, each time the one with which the KL is lowest.

    Where the student diverges, the layers whose replacement alone diverges are restored first.
    """
    current: Kept = frozenset()
    path, order, scores, notes = [_step(search, current, "kl")], [], {}, []
    if math.isnan(search.quality(current, "kl")):
        order = diverging_alone(search, "kl")
        scores = dict.fromkeys(order, math.inf)
        current = frozenset(order)
        if order:
            if not budget.fits(current):
                raise UserError(
                    f"kl: the model diverges where layer {words(order)} is replaced, and keeping all of"
                    f" these does not fit the budget, {budget.text}: raise it"
                )
            notes.append(diverged_note(order))
            path.append(_step(search, current, "kl"))
    before = search.quality(current, "kl")
    shortlist = _Shortlist(settings.shortlist)
    while True:
        addable = [i for i in search.layers if i not in current and budget.fits(current | {i})]
        if not addable:
            break
        found = {i: search.quality(current | {i}, "kl") for i in shortlist.of(addable)}
        shortlist.note(found, before)
        layer = max(found, key=lambda i: (_lowest_if_nan(found[i]), -i))
        if math.isnan(found[layer]):
            raise UserError(f"kl: every model that keeps {one_more(sorted(current))} diverges")
        fall = found[layer] - before
        scores[layer] = math.inf if math.isnan(fall) else fall
        finite = {i: q for i, q in found.items() if not math.isnan(q)}
        notes += _close(search, current, layer, finite, "kl", add=True)
        if scores[layer] < 0:
            notes.append(f"the KL rises by {-scores[layer]:.4g} when layer {layer} is restored")
        current |= {layer}
        before = found[layer]
        order.append(layer)
        path.append(_step(search, current, "kl"))
    if math.isnan(before):
        raise UserError(f"kl: no model found within the budget of {budget.text} has a finite KL")
    return Selection("kl", tuple(sorted(current)), tuple(order), scores, tuple(path), tuple(notes))


def _exhaustive(search: Search, budget: Budget | None, settings: SelectorSettings) -> Selection:
    """Evaluates every set of layers that fits; of equal ones, the fewest and lowest layers."""
    metric, sets = settings.metric, []
    for kept in _fitting(search, budget):
        sets.append(kept)
        if len(sets) > settings.max_evaluations:
            raise UserError(
                f"exhaustive: more than {settings.max_evaluations:,} sets of {len(search.layers)}"
                " layers fit the budget: raise --max_evaluations, or use greedy"
            )
    found = {kept: search.quality(kept, metric) for kept in sets}
    best = max(sets, key=lambda kept: _lowest_if_nan(found[kept]))  # the first of equal ones
    if math.isnan(found[best]):
        raise UserError("exhaustive: every model that fits the budget diverges")
    return Selection("exhaustive", tuple(sorted(best)), path=(_step(search, best, metric),))


def _fitting(search: Search, budget: Budget | None) -> Iterator[Kept]:
    """The sets that fit the budget, small ones first; those that do not are not visited one by one."""
    if budget is None:
        budget = Budget.of_layers(search.layers, len(search.layers))
    layers = budget.layers
    added = [k - r for k, r in zip(budget.kept, budget.replaced, strict=True)]

    def possible(start: int, size: int, room: int) -> bool:
        """Whether the cheapest `size` layers from index `start` on fit."""
        return sum(sorted(added[start:])[:size]) <= room

    def chosen(start: int, size: int, room: int) -> Iterator[Kept]:
        if size == 0:
            yield frozenset()
            return
        for i in range(start, len(layers) - size + 1):
            left = room - added[i]
            if possible(i + 1, size - 1, left):
                for rest in chosen(i + 1, size - 1, left):
                    yield rest | {layers[i]}

    room = budget.limit - budget.cost(())
    for size in range(len(layers) + 1):
        if possible(0, size, room):
            yield from chosen(0, size, room)


def _step(search: Search, kept: Kept, metric: str) -> Step:
    return Step(tuple(sorted(kept)), metric, search.evaluate(kept, metric))


def _close(
    search: Search,
    current: Kept,
    layer: int,
    found: dict[int, float],
    metric: str,
    add: bool = False,
) -> list[str]:
    """Says whether the step's best layer and the next best differ by less than the noise."""
    others = [i for i in found if i != layer]
    if not others or layer not in found:
        return []
    second = max(others, key=lambda i: (found[i], -i))
    models = [current | {i} if add else current - {i} for i in (layer, second)]
    a, b = (search.qualities(model, metric) for model in models)
    verb = "restored" if add else "replaced"
    if found[layer] == found[second]:
        return [f"layers {layer} and {second} tie in {metric} when {verb}: the lower is taken"]
    gap = difference(a, b)
    if not gap.holds_zero:
        return []
    return [
        f"layer {layer} was {verb} before layer {second} by a difference in {metric} of {gap}, which"
        " is within noise"
    ]


def _lowest_if_nan(quality: float) -> float:
    return -math.inf if math.isnan(quality) else quality


def _shown(search: Search, metric: str, quality: float) -> str:
    return f"{search.metrics[metric].quality(quality):.4g}"


GREEDY = Selector(
    "greedy",
    "replaces the layer whose model scores best, again and again",
    "all layers full; each round evaluates every full layer's replacement and makes the best one, down"
    " to the budget or to P_min; O(L^2) evaluations; M_best, M_opt of arXiv 2601.11667",
    _greedy,
    lambda s: (s.metric,),
    needs_budget=False,
)
KL = Selector(
    "kl",
    "restores the layer after which the KL to the teacher is lowest, again and again",
    "all candidates replaced; each round restores the layer to softmax attention with the largest fall"
    " of the KL; arXiv 2512.20569, without its training for each layer",
    _kl,
    lambda s: ("kl",),
)
EXHAUSTIVE = Selector(
    "exhaustive",
    "every set of layers that fits the budget",
    "the best of all sets by --metric; for small L",
    _exhaustive,
    lambda s: (s.metric,),
    needs_budget=False,
)
