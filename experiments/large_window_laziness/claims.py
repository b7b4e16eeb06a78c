"""Tests the declared claims on the committed tables: each holds, does not hold, or is undecided.

    python -m experiments.large_window_laziness.claims [--scale main] [--results FOLDER]

The claims, their contrasts and their margins stand in `declared` and were written before the runs that
test them. A contrast is a difference between two arms of the same seed (or between two figures of
one run), so that the sample is a seed. Its tests are exact sign-flip tests (see `paired`):

- a claim of a difference holds where "no difference, or the other way" is rejected, and does not
  hold where "a difference of at least the margin" is; where both are, it "holds, below the margin":
  there is a difference, and it is smaller than one that matters;
- a claim of no difference holds where "a difference of the margin or more" is rejected, and does
  not hold where "less than the margin" is.

Both directions have the same burden: p <= 0.05 after Holm's correction over all contrasts of all
claims, for each direction by itself. For symmetric differences the chance that any contrast is
wrongly said to hold is at most 5%, and so is the chance that any is wrongly said not to, so that of
both errors together it is at most 10%. A claim holds if all its contrasts hold (below the margin, if
one of them does so only), does not hold if one of them does not, and is undecided otherwise, as it is
where a contrast has fewer than `FEWEST` seeds. A verdict is about the steps that were run: "by 6,000
steps" is not "with enough training".
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.large_window_laziness import paired, tables
from experiments.large_window_laziness.arms import MAIN, POSITIONS, SCALES, ExperimentScale
from experiments.large_window_laziness.paired import Bounds, Interval
from experiments.large_window_laziness.runs import FORMED
from experiments.large_window_laziness.tables import Run, Runs
from hybridlm.errors import exit_code

RESULTS = pathlib.Path(__file__).parent / "results"
HOLDS, FAILS, UNDECIDED = "holds", "does not hold", "undecided"
BELOW = "holds, below the margin"
#: Seeds: with 8, even the least p, 2^-8, exceeds 0.05 after Holm's correction over 19 contrasts if no
#: contrast has more seeds. Only a claim of no difference needs 10 to be refuted, as its p is doubled.
FEWEST = 9
DELAY_MARGIN = math.log(1.1)  # ln of the ratio of two times
ACCURACY_MARGIN = 0.05  # share of tokens
LOSS_MARGIN = 0.02  # nats per token of local text


class Contrast(NamedTuple):
    """One tested difference of a claim.

    Attributes:
      name: what is subtracted from what.
      differences: by runs and scale, over the seeds that all its arms have.
      margin: the smallest difference that matters.
      same: whether the claim is that there is no difference.
      needed: if given, the seeds whose pairs can show the difference at all, by runs and scale: the
        contrast is undecided if there are fewer than `FEWEST`.
    """

    name: str
    differences: Callable[[Runs, ExperimentScale], Bounds]
    margin: float
    same: bool = False
    needed: Callable[[Runs, ExperimentScale], int] | None = None


class Claim(NamedTuple):
    """A claim of arXiv 2606.15378 for one kind of positions in the full layers."""

    text: str
    contrasts: tuple[Contrast, ...]


class Result(NamedTuple):
    """A contrast's figures; p are Holm-adjusted.

    Attributes:
      unseen: seeds of which a difference has no bound on one side, as a run has not retrieved.
      effect: the mean difference and its 95% interval, not adjusted for the number of contrasts.
      p_holds, p_fails: of the tests that support and refute the claim.
    """

    claim: str
    contrast: str
    outcome: str
    seeds: int
    unseen: int
    effect: Interval
    p_holds: float
    p_fails: float


class Verdict(NamedTuple):
    """A claim and its outcome, with the results of its contrasts."""

    claim: str
    outcome: str
    results: tuple[Result, ...]


def _paired(runs: Runs, *arms: str) -> list[tuple[Run, ...]]:
    """The runs of each seed that all arms have."""
    seeds = set.intersection(*(set(runs.get(arm, ())) for arm in arms))
    return [tuple(runs[arm][seed] for arm in arms) for seed in sorted(seeds)]


def _delay(late: str, early: str):
    """ln of the ratio of the steps at which retrieval formed."""

    def differences(runs: Runs, scale: ExperimentScale) -> Bounds:
        pairs = _paired(runs, late, early)
        slow, fast = ([run.formed for run in side] for side in zip(*pairs)) if pairs else ((), ())
        budgets = [min(run.facts["budget"] for run in pair) for pair in pairs]
        return paired.log_ratio(slow, fast, budgets)

    return differences


def _at_end(column: str, more: str, less: str):
    """The difference of a figure of runs.tsv between two arms."""

    def differences(runs: Runs, scale: ExperimentScale) -> Bounds:
        pairs = _paired(runs, more, less)
        return _known([a.facts[column] - b.facts[column] for a, b in pairs])

    return differences


def _lost(arm: str, more: str, less: str):
    """One accuracy at the end less another, in the runs that retrieve: others have none to lose."""

    def differences(runs: Runs, scale: ExperimentScale) -> Bounds:
        own = [run for run in runs.get(arm, {}).values() if run.formed.seen]
        return _known([run.facts[more] - run.facts[less] for run in own])

    return differences


def _far_apart(large: str, small: str):
    """Accuracy at the largest distances at the last step that both runs have."""

    def differences(runs: Runs, scale: ExperimentScale) -> Bounds:
        pairs = _paired(runs, large, small)
        return _known(
            [_at(a, "far", _shared(a, b)) - _at(b, "far", _shared(a, b)) for a, b in pairs]
        )

    return differences


def _retrieving(large: str, small: str):
    """The pairs of `_far_apart` in which the smaller window retrieves at that step."""

    def count(runs: Runs, scale: ExperimentScale) -> int:
        pairs = _paired(runs, large, small)
        return sum(_at(b, "far", _shared(a, b)) >= FORMED for a, b in pairs)

    return count


def _local_apart(large: str, small: str):
    """Nats of local text at the last step that both runs have."""

    def differences(runs: Runs, scale: ExperimentScale) -> Bounds:
        pairs = _paired(runs, large, small)
        column = "local_nll"
        return _known(
            [_at(a, column, _shared(a, b)) - _at(b, column, _shared(a, b)) for a, b in pairs]
        )

    return differences


def _shared(a: Run, b: Run) -> float:
    return max(set(a.steps) & set(b.steps))


def _at(run: Run, column: str, step: float) -> float:
    values = run.far if column == "far" else run.curve[column]
    return float(values[np.flatnonzero(run.steps == step)[0]])


def _known(values: Sequence[float]) -> Bounds:
    return Bounds.known([value for value in values if math.isfinite(value)])


def declared(scale: ExperimentScale = MAIN) -> list[Claim]:
    """The five claims, each for RoPE and for NoPE in the full layers, but for that of NoPE."""
    order = [f"w{window}" for window in scale.windows[:-1]]
    small, large, bound = order[0], order[-1], scale.small
    found = []
    for p in POSITIONS:
        contrasts = [
            Contrast(
                f"{arm}: far accuracy lost where full layers see {bound}, in runs that retrieve",
                _lost(f"{arm}-{p}", "masked_none", f"full_sees_{bound}"),
                ACCURACY_MARGIN,
            )
            for arm in (small, large)
        ]
        # The smallest window sees no more than the bound: bounding it changes nothing.
        contrasts.append(
            Contrast(
                f"{large}: far accuracy lost where efficient layers see {bound}, in runs that retrieve",
                _lost(f"{large}-{p}", "masked_none", f"local_sees_{bound}"),
                ACCURACY_MARGIN,
                same=True,
            )
        )
        found.append(Claim(f"retrieval sits in the full layers ({p})", tuple(contrasts)))
    for p in POSITIONS:
        pairs = [*zip(order[1:], order), (large, "full")]
        contrasts = [
            Contrast(
                f"ln(steps, {late} / {early})", _delay(f"{late}-{p}", f"{early}-{p}"), DELAY_MARGIN
            )
            for late, early in pairs
        ]
        text = f"the larger the window, the later retrieval forms; full is not lazy ({p})"
        found.append(Claim(text, tuple(contrasts)))
    longer = _at_end("length_2x", f"{small}-nope", f"{small}-rope")
    found.append(
        Claim(
            f"NoPE in the full layers retrieves better beyond the training length ({small})",
            (Contrast("accuracy at twice the length, NoPE - RoPE", longer, ACCURACY_MARGIN),),
        )
    )
    for p in POSITIONS:
        arms = f"{large}-long-{p}", f"{small}-long-{p}"
        needed = _retrieving(*arms)
        name = f"far accuracy at the last step, {large} - {small}"
        text = f"by {scale.long:,} steps {large} retrieves as well as {small} ({p})"
        contrast = Contrast(name, _far_apart(*arms), ACCURACY_MARGIN, same=True, needed=needed)
        found.append(Claim(text, (contrast,)))
    for p in POSITIONS:
        apart = _local_apart(f"{large}-{p}", f"{small}-{p}")
        name = f"nats of local text at the last common step, {large} - {small}"
        text = f"windows do not differ in short-range loss ({p})"
        found.append(Claim(text, (Contrast(name, apart, LOSS_MARGIN, same=True),)))
    return found


def verdicts(runs: Sequence[Run], scale: ExperimentScale = MAIN) -> list[Verdict]:
    """The verdict on each declared claim; one without enough runs is undecided."""
    by_arm = tables.by_arm(runs)
    claims = declared(scale)
    contrasts = [(claim, contrast) for claim in claims for contrast in claim.contrasts]
    tested = [(c, c.differences(by_arm, scale)) for _, c in contrasts]
    pairs = [_tests(contrast, d, by_arm, scale) for contrast, d in tested]
    adjusted = [paired.holm(p) for p in zip(*pairs)]
    results = [
        _result(claim, contrast, d, *p)
        for (claim, contrast), (_, d), *p in zip(contrasts, tested, *adjusted)
    ]
    found = []
    for claim in claims:
        own = tuple(result for result in results if result.claim == claim.text)
        found.append(Verdict(claim.text, _together([result.outcome for result in own]), own))
    return found


def _tests(
    contrast: Contrast, d: Bounds, runs: Runs, scale: ExperimentScale
) -> tuple[float, float]:
    """(p that supports, p that refutes), before Holm's correction; 1 with too few seeds.

    Untested contrasts count in the correction, so that adding runs of one claim changes no other's
    burden.
    """
    able = len(d.nearest) if contrast.needed is None else contrast.needed(runs, scale)
    if able < FEWEST:
        return 1.0, 1.0
    test = paired.within if contrast.same else paired.above
    return test(d, contrast.margin)


def _result(claim: Claim, contrast: Contrast, d: Bounds, p_holds: float, p_fails: float) -> Result:
    outcome = {
        (True, False): HOLDS,
        (True, True): BELOW,
        (False, True): FAILS,
        (False, False): UNDECIDED,
    }[p_holds <= paired.LEVEL, p_fails <= paired.LEVEL]
    effect = paired.bounded_interval(d)
    unseen = int(np.sum(~np.isfinite(d.low) | ~np.isfinite(d.high)))
    return Result(
        claim.text, contrast.name, outcome, len(d.nearest), unseen, effect, p_holds, p_fails
    )


def _together(outcomes: Sequence[str]) -> str:
    for worst in (FAILS, UNDECIDED, BELOW):
        if worst in outcomes:
            return worst
    return HOLDS


def rows(found: Sequence[Verdict]) -> list[tables.Row]:
    """The rows of claims.tsv: one per contrast, with its claim's verdict."""
    return [
        {
            **result._asdict(),
            "verdict": verdict.outcome,
            "effect": str(result.effect) if result.seeds else "not yet run",
            **{name: f"{getattr(result, name):.4f}" for name in ("p_holds", "p_fails")},
        }
        for verdict in found
        for result in verdict.results
    ]


COLUMNS = ("claim", "verdict", *Result._fields[1:])


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="claims", description=__doc__.split("\n")[0])
    parser.add_argument("--scale", choices=tuple(SCALES), default="main")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    folder = arguments.results / arguments.scale
    found = verdicts(tables.read_runs(folder), SCALES[arguments.scale])
    tables.write(folder / "claims.tsv", COLUMNS, rows(found))
    for verdict in found:
        print(f"{verdict.outcome:<23}  {verdict.claim}")
        for result in verdict.results:
            shown = f"{result.effect}" if result.seeds else "not yet run"
            p = f"p {result.p_holds:.4f} for, {result.p_fails:.4f} against"
            print(f"{'':<15}{result.contrast}: {shown}, {result.seeds} seeds, {p}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("claims", main))
