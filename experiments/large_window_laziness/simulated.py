"""Measures the statistics on simulated pairs: coverage, family-wise error and power at ten seeds.

    python -m experiments.large_window_laziness.simulated

It writes `results/main/statistics.tsv`, the same at every call. The tests and intervals are those of
`paired`, the contrasts and their number those of `claims`.

- Coverage: the share of samples whose 95% interval holds the centre.
- Family-wise error: all contrasts have the centre at which their test errs most (for a difference 0,
  or the margin in the direction against the claim); the share of samples in which at least one is
  wrongly decided, for each direction.
- Power: the share of samples in which a contrast is decided, where all others have such a centre, so
  that Holm's correction leaves it the least level. Effects are in standard deviations of the
  differences, but for those that the tests of `claims` plant (`PLANTED`).
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.large_window_laziness import claims, paired, tables
from experiments.large_window_laziness.arms import MAIN, SEEDS
from experiments.large_window_laziness.paired import Time
from hybridlm.errors import exit_code

SAMPLES = 1000
PAIRS = len(SEEDS)
COLUMNS = ("figure", "case", "share", "samples")
NOISE = 0.2  # of ln of a step, as large as in the least regular arm of the main table
EFFECTS = (0.5, 1.0, 1.5, 2.0, 3.0)  # standard deviations of the differences

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

#: Laws of mean 0 and standard deviation 1, but for Student's, whose deviation is larger.
LAWS: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "Student's, 3 degrees": lambda rng, shape: rng.standard_t(3, shape),
    "exponential": lambda rng, shape: rng.exponential(size=shape) - 1,
}


class Plant(NamedTuple):
    """An effect that the tests of the claims plant, and its noise from pair to pair."""

    effect: float
    noise: float
    margin: float
    same: bool = False


#: As in tests/experiments/test_laziness_claims.py, where each run has noise of its own.
PLANTED = {
    "far accuracy lost, 0.9": Plant(0.9, 0.02, claims.ACCURACY_MARGIN),
    "no far accuracy lost, 0.01": Plant(0.01, 0.01, claims.ACCURACY_MARGIN, same=True),
    "a delay of 1,300 to 900 steps": Plant(
        math.log(1300 / 900), 0.08 * 2**0.5, claims.DELAY_MARGIN
    ),
    "NoPE's gain, 0.4": Plant(0.4, 0.03 * 2**0.5, claims.ACCURACY_MARGIN),
    "as good by 6,000 steps": Plant(0.0, 0.01 * 2**0.5, claims.ACCURACY_MARGIN, same=True),
    "the same loss of local text": Plant(0.0, 0.004 * 2**0.5, claims.LOSS_MARGIN, same=True),
}


def p_values(d_SN: np.ndarray) -> np.ndarray:
    """`paired.sign_flip` of each of S samples of N finite differences, (S,)."""
    signs_PN = paired._signs(d_SN.shape[1])
    tie_S = paired.TIE * np.maximum(np.abs(d_SN).max(axis=1), 1) * d_SN.shape[1]
    return np.mean(signs_PN @ d_SN.T >= d_SN.sum(axis=1) - tie_S, axis=0)


def both(d_SN: np.ndarray, margin: float, same: bool) -> tuple[np.ndarray, np.ndarray]:
    """(p that supports, p that refutes) of each sample: `paired.above`, or `within` if `same`."""
    if not same:
        return p_values(d_SN), p_values(margin - d_SN)
    support = np.maximum(p_values(margin - d_SN), p_values(d_SN + margin))
    against = np.minimum(p_values(d_SN - margin), p_values(-d_SN - margin))
    return support, np.minimum(2 * against, 1.0)


def intervals(d_SN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of `paired.interval` of each of S samples of N finite differences, (S,) each."""
    chosen_PN = (paired._signs(d_SN.shape[1]) > 0)[:-1].astype(float)
    means_SP = np.sort(d_SN @ chosen_PN.T / chosen_PN.sum(axis=1), axis=1)
    cut = math.floor(paired.LEVEL / 2 * 2 ** d_SN.shape[1])
    return means_SP[:, cut - 1], means_SP[:, -cut]


def coverages(samples: int = SAMPLES) -> dict[str, float]:
    """The share of intervals that hold the centre, by the law of the differences.

    "rounded": ratios of steps that are seen at the next measurement, every `MAIN.every` steps.
    "censored": the same of longer times, of which some lie beyond the budget. There the ratio is 1.25.
    """
    found, rng = {}, np.random.default_rng(6)
    for name, draw in LAWS.items():
        low_S, high_S = intervals(draw(rng, (samples, PAIRS)))
        found[name] = float(np.mean((low_S < 0) & (high_S > 0)))
    centre = math.log(1.25)
    for name, middle in {"rounded": 1000.0, "censored": 3500.0}.items():
        held = []
        for _ in range(samples):
            early = middle * np.exp(rng.normal(0, NOISE, PAIRS))
            late = middle * 1.25 * np.exp(rng.normal(0, NOISE, PAIRS))
            times = [[_seen(step) for step in side] for side in (late, early)]
            held.append(paired.bounded_interval(paired.log_ratio(*times, MAIN.core)))
        found[name] = float(np.mean([i.low <= centre <= i.high for i in held]))
    return found


def _seen(step: float) -> Time:
    step = math.ceil(step / MAIN.every) * MAIN.every
    return Time(step, True) if step < MAIN.core else Time(MAIN.core, False)


def beyond(samples: int = SAMPLES) -> float:
    """The share of the times of "censored" that lie beyond the budget."""
    steps = 3500 * np.exp(np.random.default_rng(7).normal(0, NOISE, (2, samples, PAIRS)))
    return float(np.mean(steps * np.array([1.25, 1.0])[:, None, None] >= MAIN.core))


def family_errors(draw: Draw, samples: int = SAMPLES, shared: bool = False) -> tuple[float, float]:
    """(in support, against): the share of samples in which any contrast of no effect is decided.

    Args:
      shared: whether the contrasts of a claim of order share runs, as those of adjacent windows do:
        then each run has noise of its own. By default all contrasts are independent.
    """
    rng, wrong, count = np.random.default_rng(8), [], len(_kinds())
    for centre in ("support", "against"):
        least = np.ones(samples)
        for claim in claims.declared():
            noise = [draw(rng, (samples, PAIRS)) for _ in claim.contrasts]
            if shared and claim.contrasts[0].margin == claims.DELAY_MARGIN:
                *windows, full = draw(rng, (len(noise) + 1, samples, PAIRS))
                pairs = [*zip(windows[1:], windows), (windows[-1], full)]
                noise = [late - early for late, early in pairs]
            for d_SN, contrast in zip(noise, claim.contrasts, strict=True):
                # Where the test errs most: in support of a difference 0, else the margin.
                difference = centre == "support" and not contrast.same
                middle = 0.0 if difference else contrast.margin
                d_SN = middle + contrast.margin * d_SN
                p = both(d_SN, contrast.margin, contrast.same)[centre == "against"]
                least = np.minimum(least, p)
        wrong.append(float(np.mean(least * count <= paired.LEVEL)))
    return wrong[0], wrong[1]


def powers(samples: int = SAMPLES) -> dict[str, float]:
    """The share of samples in which an effect is decided, by its size."""
    rng, level, found = np.random.default_rng(9), paired.LEVEL / len(_kinds()), {}
    for effect in EFFECTS:
        p, _ = both(effect + rng.normal(size=(samples, PAIRS)), 0.1, same=False)
        found[f"a difference of {effect:.1f} standard deviations"] = float(np.mean(p <= level))
    for name, plant in PLANTED.items():
        d_SN = rng.normal(plant.effect, plant.noise, (samples, PAIRS))
        p, _ = both(d_SN, plant.margin, plant.same)
        found[f"planted: {name}"] = float(np.mean(p <= level))
    return found


def _kinds() -> list[tuple[float, bool]]:
    """Margin and kind of each declared contrast."""
    return [(c.margin, c.same) for claim in claims.declared() for c in claim.contrasts]


def rows(samples: int = SAMPLES) -> list[tables.Row]:
    """The rows of statistics.tsv."""
    found = [("coverage", name, share) for name, share in coverages(samples).items()]
    found += [("times beyond the budget", "censored", beyond(samples))]
    for case, law, shared in (
        ("normal", "normal", False),
        ("normal, contrasts that share runs", "normal", True),
        ("exponential", "exponential", False),
    ):
        errors = family_errors(LAWS[law], samples, shared)
        for direction, share in zip(("holds", "does not hold"), errors):
            found.append((f"family-wise error, {direction}", case, share))
    found += [("power", name, share) for name, share in powers(samples).items()]
    return [dict(zip(COLUMNS, (*row[:2], f"{row[2]:.3f}", samples))) for row in found]


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="simulated", description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=pathlib.Path, default=claims.RESULTS)
    arguments = parser.parse_args(argv)
    path = arguments.results / "main" / "statistics.tsv"
    tables.write(path, COLUMNS, rows())
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("simulated", main))
