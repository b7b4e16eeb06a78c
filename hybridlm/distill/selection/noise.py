"""Intervals over repeated evaluation sets, and differences that lie within noise."""

import dataclasses
import math
from collections.abc import Sequence

# Student's t at 97.5% for 1 to 30 degrees of freedom; the normal's 1.96 above.
_T = tuple(
    map(
        float,
        "12.706 4.303 3.182 2.776 2.571 2.447 2.365 2.306 2.262 2.228"
        " 2.201 2.179 2.160 2.145 2.131 2.120 2.110 2.101 2.093 2.086"
        " 2.080 2.074 2.069 2.064 2.060 2.056 2.052 2.048 2.045 2.042".split(),
    )
)


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean over evaluation sets with its 95% interval of Student's t.

    Attributes:
      half: half of the interval's width; None for a single set, which gives none.
      sets: number of sets.
    """

    mean: float
    half: float | None
    sets: int

    @property
    def holds_zero(self) -> bool | None:
        """Whether 0 lies in the interval; None if there is no interval."""
        return None if self.half is None else abs(self.mean) <= self.half

    def __str__(self) -> str:
        return f"{self.mean:.4g}" + ("" if self.half is None else f" ± {self.half:.2g}")


def interval(values: Sequence[float]) -> Interval:
    """The mean of one figure's values over evaluation sets, and its interval.

    The values should be of disjoint sets, drawn in the same way.
    """
    n = len(values)
    mean = math.fsum(values) / n if all(map(math.isfinite, values)) else math.nan
    if n == 1 or math.isnan(mean):
        return Interval(mean, None, n)
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    t = _T[n - 2] if n - 2 < len(_T) else 1.96
    return Interval(mean, t * math.sqrt(variance / n), n)


def difference(a: Sequence[float], b: Sequence[float]) -> Interval:
    """a - b, paired: both models were evaluated on the same sets."""
    return interval([x - y for x, y in zip(a, b, strict=True)])
