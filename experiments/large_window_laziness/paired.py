"""Sign-flip tests and intervals for differences that are paired by seed.

Two arms of one seed share their initial weights and their data. If the two runs of a pair are
exchangeable, its difference is as likely with the other sign, so all 2^n sign patterns of n
differences are equally likely: the test of "no difference" is exact at any number of pairs, whatever
the differences' law. A test at a margin, and an interval, need more: that the differences are
symmetric about their centre. For a skewed law they are approximate (`simulated.py` measures them).

Times to an event may be censored: the run ended first. `log_ratio` bounds what is then unknown, and
each test takes the bound that works against its own conclusion.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.05  # of all tests together, after Holm's correction; an interval has 1 - LEVEL
MOST_PAIRS = 16  # sign patterns are enumerated
#: Pairs from which a two-sided test can reject at `LEVEL`, and an interval of 1 - `LEVEL` is finite.
FEWEST_PAIRS = math.ceil(1 - math.log2(LEVEL))
TIE = 1e-12  # means that differ by less count as equal


class Time(NamedTuple):
    """The step of an event in a run; if `seen` is False, the run ended at that step without it."""

    step: float
    seen: bool


class Interval(NamedTuple):
    """A mean and its interval; all NaN where nothing is known."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "not known"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


class Bounds(NamedTuple):
    """N differences, each known to lie between two bounds; they are equal where it is known.

    Attributes:
      nearest: (N,) the value that is nearest to 0.
      low, high: (N,); infinite where there is no bound.
    """

    nearest: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def known(cls, values: Sequence[float]) -> "Bounds":
        """Differences without censoring."""
        values = np.asarray(values, float)
        return cls(values, values, values)

    @classmethod
    def log_times(cls, times: Sequence[Time]) -> "Bounds":
        """ln of each step; one that is not seen lies beyond the last step of its run."""
        values = np.array([math.log(time.step) for time in times])
        unseen = [not time.seen for time in times]
        return cls(values, values, np.where(unseen, math.inf, values))

    def less(self, other: "Bounds") -> "Bounds":
        """What the N differences can be of these N values and the N others."""
        low, high = self.low - other.high, self.high - other.low
        return Bounds(np.clip(0.0, low, high), low, high)


def first_lasting(steps: Sequence[float], values: Sequence[float], level: float) -> Time:
    """The first measured step with a value of at least `level`, if the next one has it, too.

    A last measurement cannot be confirmed, so it counts as not seen.
    """
    for step, value, following in zip(steps, values, values[1:]):
        if value >= level and following >= level:
            return Time(float(step), True)
    return Time(float(steps[-1]), False)


def log_ratio(
    late: Sequence[Time], early: Sequence[Time], budgets: Sequence[float] | float
) -> Bounds:
    """ln(late / early) of each pair.

    A time that is not seen by its pair's budget lies beyond it. If only the late one is not seen, the
    ratio exceeds ln(budget / early). If neither is, the ratio may be anything, and its `nearest` is 0.

    Args:
      budgets: of each pair, the steps that both its runs were given; or one for all.
    """
    nearest, low, high = np.zeros((3, len(late)))
    budgets = np.broadcast_to(budgets, len(late))
    for i, (a, b, budget) in enumerate(zip(late, early, budgets, strict=True)):
        seen = [t.seen and t.step <= budget for t in (a, b)]
        known = [math.log(t.step if s else budget) for t, s in zip((a, b), seen)]
        nearest[i] = known[0] - known[1]
        high[i] = nearest[i] if seen[0] else math.inf
        low[i] = nearest[i] if seen[1] else -math.inf
    return Bounds(nearest, low, high)


def sign_flip(differences: Sequence[float]) -> float:
    """One-sided exact p that the centre is at most 0: the share of sign patterns with such a mean.

    -inf, a difference without a bound, counts as lower than all others together could make up for. So
    p is at least a half with one of them: a mean that may be anything supports nothing.

    Raises:
      ValueError: if there are more than `MOST_PAIRS` differences.
    """
    d = np.asarray(differences, float)
    if len(d) > MOST_PAIRS:
        raise ValueError(f"{len(d)} pairs are too many to enumerate: at most {MOST_PAIRS}")
    known = np.abs(d[np.isfinite(d)])
    if not len(known):
        return 1.0
    d = np.where(np.isfinite(d), d, -2 * known.sum() - 1)
    return float(np.mean(_signs(len(d)) @ d >= d.sum() - TIE * max(known.max(), 1) * len(d)))


def two_sided(d: Bounds) -> float:
    """The p of "the centre is 0", from the bounds that work against a difference."""
    return min(2 * min(sign_flip(d.low), sign_flip(-d.high)), 1.0)


def above(d: Bounds, margin: float) -> tuple[float, float]:
    """(p against "the centre is at most 0", p against "it is at least `margin`").

    A small first p supports a claim of a difference, a small second one refutes it. Each takes the
    bound of a difference that works against its conclusion.
    """
    return sign_flip(d.low), sign_flip(margin - d.high)


def within(d: Bounds, margin: float) -> tuple[float, float]:
    """(p against "the centre is `margin` or more from 0", p against "it is less than that").

    A small first p supports a claim of no difference (two one-sided tests), a small second one
    refutes it (twice the smaller of two one-sided tests).
    """
    support = max(sign_flip(margin - d.high), sign_flip(d.low + margin))
    against = min(sign_flip(d.low - margin), sign_flip(-d.high - margin))
    return support, min(2 * against, 1.0)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p of each test: rejecting those up to 0.05 errs at all in 5% of cases (Holm 1979)."""
    adjusted, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        highest = max(highest, min((len(p) - rank) * p[i], 1.0))
        adjusted[i] = highest
    return adjusted


def interval(differences: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean, and all centres that the two-sided sign-flip test at `level` does not reject.

    These lie between two means of subsets (Hartigan, "Using subsample values as typical values",
    1969): the 2^n - 1 means of non-empty subsets cut the line into 2^n pieces, and the centre of
    symmetric differences lies in each with equal probability. So the coverage is exact for them, and
    approximate for skewed ones; with few pairs (5 or fewer at 95%) no finite interval has it. A
    difference may be infinite.
    """
    d = np.asarray(differences, float)
    chosen = (_signs(len(d)) > 0)[:-1]  # without the empty subset
    means = np.sort(np.where(chosen, d, 0.0).sum(axis=1) / chosen.sum(axis=1))
    cut = math.floor(level / 2 * 2 ** len(d))
    if cut < 1:
        return Interval(float(d.mean()), -math.inf, math.inf)
    return Interval(float(d.mean()), float(means[cut - 1]), float(means[-cut]))


def bounded_interval(d: Bounds) -> Interval:
    """The interval of differences of which some are only bounded: it holds for all that they may be.

    Its low end is that of the low bounds, its high end that of the high bounds, so that an end is
    infinite where its bounds leave it open. The value is the mean of those nearest to 0. Where no
    difference has a bound, all is NaN.
    """
    if not (np.isfinite(d.low) | np.isfinite(d.high)).any():
        return Interval(math.nan, math.nan, math.nan)
    return Interval(float(d.nearest.mean()), interval(d.low).low, interval(d.high).high)


def interval_or_range(d: Bounds) -> Interval:
    """`bounded_interval`; of fewer than `FEWEST_PAIRS` pairs, which have no finite one, their range.

    The range of N differences holds the centre of symmetric ones with probability 1 - 2^(1 - N): 94%
    for five. An end is infinite where a bound on its side is missing.
    """
    found = bounded_interval(d)
    if len(d.nearest) >= FEWEST_PAIRS or math.isnan(found.value):
        return found
    return Interval(found.value, float(d.low.min()), float(d.high.max()))


def _signs(n: int) -> np.ndarray:
    """(2^n, n) patterns of 1 and -1; the last is all -1."""
    return 1 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
