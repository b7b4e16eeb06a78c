"""The learning rate of each kind of positions, chosen from the sweep on separate seeds."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.large_window_laziness.tables import Run


class Rate(NamedTuple):
    """A rate of the sweep.

    Attributes:
      formed: runs in which retrieval formed, of `runs`.
      step: geometric mean of the steps at which it formed; a run without it counts with its last step.
      chosen: whether it is the rate with the least `step`; the smaller one of two that are equal.
    """

    positions: str
    rate: float
    runs: int
    formed: int
    step: float
    chosen: bool


def rates(runs: Sequence[Run]) -> list[Rate]:
    """The rates of the sweep, over its windows and seeds, by positions and size."""
    found: dict[tuple[str, float], list[Run]] = {}
    for run in runs:
        name = re.fullmatch(r"w\d+-lr([\de.-]+)-(rope|nope)", run.arm)
        if name:
            found.setdefault((name[2], float(name[1])), []).append(run)
    steps = {
        key: float(np.exp(np.mean([np.log(run.formed.step) for run in own])))
        for key, own in sorted(found.items())
    }
    best = {p: min((step, rate) for (q, rate), step in steps.items() if q == p) for p, _ in steps}
    return [
        Rate(
            p,
            rate,
            len(found[p, rate]),
            sum(run.formed.seen for run in found[p, rate]),
            step,
            best[p] == (step, rate),
        )
        for (p, rate), step in steps.items()
    ]


def chosen(runs: Sequence[Run]) -> dict[str, float]:
    """The chosen rate by positions; empty without a sweep."""
    return {rate.positions: rate.rate for rate in rates(runs) if rate.chosen}
