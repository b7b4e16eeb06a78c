"""The result of a selector, and the settings that selectors read."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from hybridlm.distill.selection.budget import Budget, Kept
from hybridlm.distill.selection.evaluations import Search, Values
from hybridlm.settings.bounds import NonNegativeFloat, NonNegativeInt, PositiveInt, settings
from hybridlm.settings.reader import require


@settings
class SelectorSettings:
    """What a selector compares models by.

    Attributes:
      metric: of greedy, exhaustive and the reported quality.
      recall: metric of HALO's first column, and of recall: recall of models with one layer replaced.
      commonsense: metric of HALO's second column: their short-context quality.
      min_score: greedy stops before the metric is worse than this (P_min).
      max_drop: or before it is worse than the teacher's by this share; 0.05 where greedy has no budget.
      take: what greedy without a budget returns: the model with the most replaced layers that is
        not worse than P_min (opt), or the best model on the way (best).
      shortlist: after their first round greedy and kl evaluate only this many layers a round, those that
        gained most when last evaluated; all by default, as in the papers.
      seed: of random.
      max_evaluations: exhaustive refuses more.
    """

    metric: str = "kl"
    recall: str = "needle_nll"
    commonsense: str = "loss"
    min_score: float | None = None
    max_drop: NonNegativeFloat | None = None
    take: Literal["opt", "best"] = "opt"
    shortlist: PositiveInt | None = None
    seed: NonNegativeInt = 0
    max_evaluations: PositiveInt = 5000

    def __post_init__(self):
        require(
            self.min_score is None or self.max_drop is None,
            "max_drop",
            "and --min_score both set P_min: set only one of them",
        )


@dataclasses.dataclass(frozen=True)
class Step:
    """A model that a selector went through, with the metric's values as measured."""

    kept: tuple[int, ...]
    metric: str
    values: Values


@dataclasses.dataclass(frozen=True)
class Selection:
    """The layers that keep attention.

    Attributes:
      method: the selector's name.
      kept: candidates that keep attention, in ascending order.
      order: candidates, the most important first; empty where the selector has no such order.
      scores: by candidate, the score of the order; without candidates that have none.
      path: the models on the selector's way.
      notes: sentences on ties, noise and what was left out.
    """

    method: str
    kept: tuple[int, ...]
    order: tuple[int, ...] = ()
    scores: Mapping[int, float] = dataclasses.field(default_factory=dict)
    path: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """The selection as plain values, ready for JSON."""
        path = [dataclasses.asdict(step) for step in self.path]
        scores = {str(layer): score for layer, score in sorted(self.scores.items())}
        return dataclasses.asdict(self) | {"path": path, "scores": scores}


Select = Callable[[Search, Budget | None, SelectorSettings], Selection]


@dataclasses.dataclass(frozen=True)
class Selector:
    """A registered selector.

    Attributes:
      definition: what it does, and where that is from.
      select: (search, budget, settings) -> the selection.
      reads: the metrics that it evaluates, from the settings.
      needs_budget: whether it must be told how many layers to keep.
      single: whether scores of models with a single layer replaced or kept are enough.
    """

    name: str
    help: str
    definition: str
    select: Select
    reads: Callable[[SelectorSettings], tuple[str, ...]] = lambda settings: ()
    needs_budget: bool = True
    single: bool = False


def ranked(scores: Mapping[int, float]) -> tuple[int, ...]:
    """The layers in the order of their scores, the highest first.

    Of layers with equal scores the higher layer comes first, as in HALO's code, which sorts upwards
    and reverses. Layers whose score is NaN come last.
    """

    def key(layer: int) -> tuple[float, int]:
        score = scores[layer]
        return (-math.inf if math.isnan(score) else score), layer

    return tuple(sorted(scores, key=key, reverse=True))


def cut(
    method: str, scores: Mapping[int, float], budget: Budget, notes: tuple[str, ...] = ()
) -> Selection:
    """The selection of the highest scores within the budget."""
    order = ranked(scores)
    kept = budget.cut(order)
    return Selection(
        method, tuple(sorted(kept)), order, scores, (), (*notes, *_tie(scores, order, kept))
    )


def _tie(scores: Mapping[int, float], order: tuple[int, ...], kept: Kept) -> tuple[str, ...]:
    """A sentence if layers on both sides of the cut have the same score."""
    left = {scores[layer] for layer in order if layer not in kept}
    shared = left & {scores[layer] for layer in kept}
    if not shared:
        return ()
    score = max(shared)
    layers = sorted(layer for layer in order if scores[layer] == score)
    chosen = [layer for layer in layers if layer in kept]
    return (
        f"layers {words(layers)} tie at the cut with a score of {score:.6g}: of equal scores the"
        f" higher layer is kept, here {words(chosen)}",
    )


def diverging_alone(search: Search, metric: str) -> list[int]:
    """The candidates whose replacement alone gives a model that diverges, in ascending order."""
    return [i for i in search.layers if math.isnan(search.quality(search.all - {i}, metric))]


def diverged_note(layers: Any) -> str:
    """The note of a ranking in which these layers come first, because they cannot be replaced."""
    return (
        f"the model diverges where layer {words(layers)} is replaced, so the highest score is given"
    )


def one_more(layers: Any) -> str:
    """These layers and any other one, for errors."""
    return f"layers {words(layers)} and one more" if layers else "one layer"


def words(layers: Any) -> str:
    """Layer numbers as text; "none" without any."""
    return ", ".join(map(str, layers)) or "none"
