"""The settings of a search for the layers that keep attention."""

import dataclasses
import pathlib
from typing import Annotated, Literal

from hybridlm.settings.bounds import (
    LONGEST,
    AtLeast,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    settings,
)
from hybridlm.settings.reader import require
from hybridlm.settings.text import TOKENS


@settings
class GateSettings:
    """Training of the joint gates.

    Attributes:
      gate_steps: optimizer steps.
      gate_lr: Adam's learning rate of the gates' logits.
      gate_weight: nats per answer token that a layer's attention must be worth to keep its gate up;
        adapted to the budget by default.
      gate_task: the synthetic retrieval: needles in text, or MQAR over the model's vocabulary.
    """

    gate_steps: PositiveInt = 200
    gate_lr: PositiveFloat = 0.05
    gate_weight: NonNegativeFloat | None = None
    gate_task: Literal["needle", "mqar"] = "needle"


@settings
class SearchSettings:
    """Which selectors to run, within which budget, on which evaluation sets.

    Attributes:
      methods: selectors separated by commas; see the list below.
      keep: the budget as a number of replaceable layers that keep attention.
      cache: or the budget as bytes of all layers' states of one sequence.
      context: tokens of that sequence.
      length: tokens of a sequence in evaluations; the training length by default.
      samples: sequences of each evaluation set.
      sets: disjoint evaluation sets; two or more give intervals.
      batch: batch size, in sequences.
      sample_seed: seed of the evaluation sets that are drawn.
      pairs: pairs of MQAR; a 16th of the length by default.
      curve: numbers of replaced layers at which every method is evaluated, for the figure.
      data: run whose held-out text is read, if neither the teacher nor the student is a run.
    """

    methods: tuple[str, ...] = ("greedy",)
    keep: NonNegativeInt | None = None
    cache: PositiveInt | None = None
    context: PositiveInt = dataclasses.field(default=131072, metadata=TOKENS)
    length: Annotated[int, AtLeast(2), LONGEST] | None = dataclasses.field(
        default=None, metadata=TOKENS
    )
    samples: PositiveInt = 16
    sets: PositiveInt = 3
    batch: PositiveInt = 8
    sample_seed: NonNegativeInt = 0
    pairs: PositiveInt | None = None
    curve: tuple[PositiveInt, ...] = ()
    data: pathlib.Path | None = None

    def __post_init__(self):
        once = len(self.methods) > 0 and len(set(self.methods)) == len(self.methods)
        require(once, "methods", "needs at least one selector, and each only once")
        require(
            self.keep is None or self.cache is None,
            "cache",
            "and --keep are both budgets: give one of them",
        )
