"""Censored times, bootstrap intervals and permutation tests; the sample is a run."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

INTERVAL = (2.5, 97.5)  # percentiles of bootstrap samples
SAMPLES = 5_000


class Time(NamedTuple):
    """The step of an event in a run; if `seen` is False, the time is right-censored there."""

    step: float
    seen: bool


class Estimate(NamedTuple):
    """A figure and its bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def first_crossing(steps: Sequence[float], values: Sequence[float], level: float) -> Time:
    """The first measured step at which `values` is at least `level`, and at the next one, too.

    The last step needs no next one. Without such a step, the time is censored at the last step.
    """
    for i, value in enumerate(values):
        if value >= level and (i + 1 == len(values) or values[i + 1] >= level):
            return Time(float(steps[i]), True)
    return Time(float(steps[-1]), False)


def survival(times: Sequence[Time]) -> tuple[np.ndarray, np.ndarray]:
    """Kaplan-Meier: (steps from 0, share of runs without the event just after each step)."""
    steps, share = [0.0], [1.0]
    for step in sorted({t.step for t in times if t.seen}):
        at_risk = sum(t.step >= step for t in times)
        events = sum(t.seen and t.step == step for t in times)
        steps.append(step)
        share.append(share[-1] * (1 - events / at_risk))
    return np.array(steps), np.array(share)


def restricted_mean(times: Sequence[Time], horizon: float) -> float:
    """Area under the survival curve up to `horizon`: the mean of min(time, horizon).

    Runs censored before the horizon count as in the Kaplan-Meier curve.
    """
    steps, share = survival(times)
    kept = steps < horizon
    edges = np.append(steps[kept], horizon)
    return float(np.sum(share[kept] * np.diff(edges)))


def log_rank(a: Sequence[Time], b: Sequence[Time]) -> float:
    """The log-rank z-score: (events of `a` - expected with equal hazards) / standard deviation."""
    excess = variance = 0.0
    for step in sorted({t.step for t in (*a, *b) if t.seen}):
        n_a, n_b = sum(t.step >= step for t in a), sum(t.step >= step for t in b)
        d_a, d_b = (sum(t.seen and t.step == step for t in x) for x in (a, b))
        n, d = n_a + n_b, d_a + d_b
        excess += d_a - d * n_a / n
        if n > 1:
            variance += d * (n_a / n) * (n_b / n) * (n - d) / (n - 1)
    return excess / math.sqrt(variance) if variance > 0 else 0.0


def difference(
    a: Sequence, b: Sequence, statistic: Callable[[Sequence], float] = np.mean, seed: int = 0
) -> Estimate:
    """statistic(b) - statistic(a), with a percentile bootstrap over the runs of each."""
    rng = np.random.default_rng(seed)

    def resampled(x: Sequence) -> float:
        return statistic([x[i] for i in rng.integers(0, len(x), len(x))])

    draws = [resampled(b) - resampled(a) for _ in range(SAMPLES // 2)]
    low, high = np.percentile(draws, INTERVAL)
    return Estimate(float(statistic(b) - statistic(a)), float(low), float(high))


def permutation(
    groups: Sequence[Sequence[Sequence]],
    statistic: Callable[[Sequence[Sequence]], float],
    seed: int = 0,
    samples: int = SAMPLES,
) -> float:
    """One-sided p: how often the summed statistic is as large with permuted labels.

    Args:
      groups: strata, each a sequence of groups of runs; runs are permuted within a stratum.
      statistic: of one stratum's groups; larger values support the claim.
    """
    observed = sum(map(statistic, groups))
    if len(groups) == 1 and len(groups[0]) == 2:  # few enough to enumerate
        return _exact(*groups[0], statistic, observed)
    rng = np.random.default_rng(seed)
    pooled = [[run for group in stratum for run in group] for stratum in groups]
    count = 0
    for _ in range(samples):
        total = 0.0
        for stratum, runs in zip(groups, pooled):
            order, start, shuffled = rng.permutation(len(runs)), 0, []
            for group in stratum:
                shuffled.append([runs[i] for i in order[start : start + len(group)]])
                start += len(group)
            total += statistic(shuffled)
        count += total >= observed - 1e-12
    return (count + 1) / (samples + 1)


def _exact(
    a: Sequence, b: Sequence, statistic: Callable[[Sequence[Sequence]], float], observed: float
) -> float:
    """p over all divisions of the runs into two groups."""
    runs, found = [*a, *b], []
    for chosen in itertools.combinations(range(len(runs)), len(a)):
        rest = [runs[i] for i in range(len(runs)) if i not in chosen]
        found.append(statistic([[runs[i] for i in chosen], rest]) >= observed - 1e-12)
    return float(np.mean(found))


def increasing(groups: Sequence[Sequence[float]]) -> float:
    """Jonckheere's statistic: pairs in the order of the groups; ties count half."""
    total = 0.0
    for i, a in enumerate(groups):
        for b in groups[i + 1 :]:
            for x in a:
                total += sum(1.0 if y > x else 0.5 if y == x else 0.0 for y in b)
    return total
