"""Tests the claims on the committed table: each holds, does not hold, or is undecided.

    python -m experiments.large_window_laziness.claims [--scale main] [--results FOLDER]

The sample is a run: each run has its own initial weights and data. Intervals are 95% percentile
bootstraps over runs, and tests are one-sided permutations of runs among arms. A claim of a
difference holds if p <= 0.05 (the minimum for 3 runs against 3) and the interval lies above 0; it
does not hold if the interval lies below 0. A claim of no difference holds if the interval lies
within its margin, and does not hold if it lies outside. All other claims are undecided. Arms with
fewer than 2 runs are left out.
"""

import argparse
import pathlib
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.large_window_laziness import tables
from experiments.large_window_laziness.arms import MAIN, SCALES, ExperimentScale, recurrent
from experiments.large_window_laziness.statistics import (
    Estimate,
    Time,
    difference,
    increasing,
    log_rank,
    permutation,
    restricted_mean,
)
from experiments.large_window_laziness.tables import Curve

RESULTS = pathlib.Path(__file__).parent / "results"
HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
P = 0.05
ACCURACY_MARGIN = 0.05  # share of tokens; smaller differences in accuracy count as none
LOSS_MARGIN = 0.02  # nats per token of local text
CURES = ("curriculum", "stochastic", "dropout")

Arms = dict[str, list[Curve]]


class Verdict(NamedTuple):
    """A claim, its outcome, and the figures that decide it."""

    claim: str
    outcome: str
    figure: str


def verdicts(curves: Sequence[Curve], scale: ExperimentScale = MAIN) -> list[Verdict]:
    """The verdict on each claim that the runs can test, without arms of fewer than 2 runs."""
    arms: Arms = defaultdict(list)
    for curve in curves:
        arms[curve.arm].append(curve)
    arms = {name: runs for name, runs in arms.items() if len(runs) > 1}
    order = [f"w{window}" for window in scale.windows[:-1]]
    small, large = order[0], order[-1]
    found = []
    for positions in ("rope", "nope"):
        late, early = f"{large}-{positions}", f"{small}-{positions}"
        claim = (
            f"window {scale.large} forms retrieval later than window {scale.small} ({positions})"
        )
        found.append(ordering(arms, order, positions))
        found.append(_later(arms, late, early, claim))
    found.append(nope_gain(arms, (small,), f"NoPE helps at window {scale.small}"))
    found.append(nope_gain(arms, order, "NoPE helps, all windows together"))
    for positions in ("rope", "nope"):
        found.append(convergence(arms, small, large, positions))
        found.append(same_local_loss(arms, small, large, positions))
        for cure in CURES:
            claim = f"{cure} cures window {scale.large} ({positions})"
            found.append(_later(arms, f"{large}-{positions}", f"{cure}-{positions}", claim))
    mixers = recurrent(scale)
    for name in mixers:
        found.append(nope_gain(arms, (name,), f"NoPE helps a {name} hybrid"))
    window = mixers["nha"]["window"]
    for positions in ("rope", "nope"):
        claim = (
            f"NHA's slots make full layers lazier than its window of {window} alone ({positions})"
        )
        found.append(_later(arms, f"nha-{positions}", f"w{window}-{positions}", claim))
    return [verdict for verdict in found if verdict is not None]


def ordering(arms: Arms, order: Sequence[str], positions: str) -> Verdict | None:
    """Whether retrieval forms later with larger windows: the trend over the windows."""
    names = [w for w in order if f"{w}-{positions}" in arms]
    if len(names) < 3:
        return None
    horizon = _horizon([arms[f"{w}-{positions}"] for w in names])
    groups = [_times(arms[f"{w}-{positions}"]) for w in names]
    p = permutation([[[min(t.step, horizon) for t in g] for g in groups]], increasing)
    ends = difference(groups[0], groups[-1], lambda g: restricted_mean(g, horizon))
    shown = ", ".join(f"{n} {restricted_mean(g, horizon):.0f}" for n, g in zip(names, groups))
    figure = (
        f"restricted mean steps to retrieval (up to {horizon:.0f}): {shown}; trend p = {p:.4f};"
        f" {names[-1]} - {names[0]} = {ends}"
    )
    claim = f"the larger the window, the later retrieval forms ({positions})"
    return Verdict(claim, _above(ends, p), figure)


def nope_gain(arms: Arms, names: Sequence[str], claim: str) -> Verdict | None:
    """Whether NoPE raises the accuracy at the largest distances, averaged over training."""
    pairs = [(arms.get(f"{n}-rope"), arms.get(f"{n}-nope")) for n in names]
    pairs = [pair for pair in pairs if pair[0] and pair[1]]
    if not pairs:
        return None
    horizon = _horizon([g for pair in pairs for g in pair])
    strata = [[[c.area(tables.DISTANCES[-1], horizon) for c in g] for g in pair] for pair in pairs]
    p = permutation(strata, lambda s: np.mean(s[1]) - np.mean(s[0]))
    gain = _stratified(strata)
    times = ", ".join(
        f"{n} {restricted_mean(_times(a), horizon):.0f} to {restricted_mean(_times(b), horizon):.0f}"
        for n, (a, b) in zip(names, pairs)
    )
    figure = (
        f"mean accuracy at the largest distances over {horizon:.0f} steps, NoPE - RoPE = {gain}, p = {p:.4f};"
        f" steps to retrieval, RoPE to NoPE: {times}"
    )
    return Verdict(claim, _above(gain, p), figure)


def convergence(arms: Arms, small: str, large: str, positions: str) -> Verdict | None:
    """Whether the largest and the smallest window end equal with the long budget."""
    few, many = (arms.get(f"{window}-long-{positions}") for window in (small, large))
    if not (few and many):
        return None
    apart = difference([c.far[-1] for c in many], [c.far[-1] for c in few])
    steps = int(_horizon([few, many]))
    figure = (
        f"accuracy at the largest distances after {steps} steps: {small}"
        f" {np.mean([c.far[-1] for c in few]):.2f}, {large}"
        f" {np.mean([c.far[-1] for c in many]):.2f}; difference {apart}"
    )
    return Verdict(
        f"with enough training {large} catches up with {small} ({positions})",
        _within(apart, ACCURACY_MARGIN),
        figure,
    )


def same_local_loss(arms: Arms, small: str, large: str, positions: str) -> Verdict | None:
    """Whether the largest and the smallest window have the same final loss on local text."""
    groups = [arms.get(f"{w}-{positions}") for w in (small, large)]
    if not all(groups):
        return None
    ends = [[c.values["local_nll"][-1] for c in g] for g in groups]
    apart = difference(*ends)
    figure = (
        f"nats a token of local text at the end: {small} {np.mean(ends[0]):.4f}, {large}"
        f" {np.mean(ends[1]):.4f}; difference {apart}, margin {LOSS_MARGIN}"
    )
    return Verdict(
        f"windows do not differ in short-range loss ({positions})",
        _within(apart, LOSS_MARGIN),
        figure,
    )


def _later(arms: Arms, late: str, early: str, claim: str) -> Verdict | None:
    """Whether retrieval forms later in the runs of `late` than in those of `early`."""
    if late not in arms or early not in arms:
        return None
    horizon = _horizon([arms[late], arms[early]])
    slow, fast = _times(arms[late]), _times(arms[early])
    p = permutation([[slow, fast]], lambda s: -log_rank(*s))
    delay = difference(fast, slow, lambda g: restricted_mean(g, horizon))
    never = [f"{sum(not t.seen for t in g)} of {len(g)}" for g in (slow, fast)]
    figure = (
        f"restricted mean steps to retrieval (up to {horizon:.0f}): {late}"
        f" {restricted_mean(slow, horizon):.0f}, {early} {restricted_mean(fast, horizon):.0f}; later by"
        f" {delay}; log-rank p = {p:.4f}; never formed: {never[0]} and {never[1]}"
    )
    return Verdict(claim, _above(delay, p), figure)


def _horizon(groups: Sequence[Sequence[Curve]]) -> float:
    """The number of steps that all runs have."""
    return min(float(c.steps[-1]) for group in groups for c in group)


def _times(group: Sequence[Curve]) -> list[Time]:
    return [curve.formed for curve in group]


def _stratified(strata: Sequence[Sequence[Sequence[float]]], seed: int = 0) -> Estimate:
    """The mean over strata of (second group - first group), resampled within each group."""
    rng = np.random.default_rng(seed)

    def gap(resample: Callable[[Sequence[float]], Sequence[float]]) -> float:
        return float(np.mean([np.mean(resample(b)) - np.mean(resample(a)) for a, b in strata]))

    draws = [gap(lambda x: rng.choice(x, len(x))) for _ in range(2000)]
    low, high = np.percentile(draws, (2.5, 97.5))
    return Estimate(gap(lambda x: x), float(low), float(high))


def _above(estimate: Estimate, p: float) -> str:
    if estimate.low > 0 and p <= P + 1e-9:
        return HOLDS
    return FAILS if estimate.high < 0 else UNDECIDED


def _within(estimate: Estimate, margin: float) -> str:
    if -margin <= estimate.low and estimate.high <= margin:
        return HOLDS
    return FAILS if estimate.low > margin or estimate.high < -margin else UNDECIDED


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="claims", description=__doc__.split("\n")[0])
    parser.add_argument("--scale", choices=tuple(SCALES), default="main")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    folder = arguments.results / arguments.scale
    curves = tables.read_curves(tables.read(folder / "curves.tsv"))
    found = verdicts(curves, SCALES[arguments.scale])
    tables.write(folder / "claims.tsv", Verdict._fields, [v._asdict() for v in found])
    for verdict in found:
        print(f"{verdict.outcome:<13}  {verdict.claim}\n{'':<15}{verdict.figure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
