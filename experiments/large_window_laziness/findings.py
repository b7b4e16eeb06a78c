"""The sentences of the README about results, each worded by what the committed tables say.

A sentence states figures and the outcome that the tests give them, so that it is true of any tables:
"holds", "holds, below the margin", "does not hold", "undecided" and "not yet run" have words of their own.
"""

from collections.abc import Sequence

import numpy as np

from experiments.large_window_laziness import tables
from experiments.large_window_laziness.arms import POSITIONS, ExperimentScale
from experiments.large_window_laziness.claims import (
    BELOW,
    FAILS,
    FEWEST,
    HOLDS,
    UNDECIDED,
    Result,
    Verdict,
)
from experiments.large_window_laziness.page import NOT_RUN, median, ratio
from experiments.large_window_laziness.remarks import NAMES, direction, row_of
from experiments.large_window_laziness.runs import FORMED
from experiments.large_window_laziness.tables import Run

MISSING = "not yet run"


def findings(
    runs: Sequence[Run],
    scale: ExperimentScale,
    verdicts: Sequence[Verdict],
    rows: Sequence[tables.Row],
) -> str:
    """The first paragraph of the result, an item for each claim, and what the `full` arms do.

    Args:
      rows: of comparisons.tsv.
    """
    own = tables.of_set(runs, scale, "core")
    if not own:
        return NOT_RUN
    retrieval, order, longer, late, local = _by_claim(verdicts)
    items = [
        _item("Retrieval sits in the full layers", retrieval, _retrieval(retrieval, scale)),
        _item(
            "The larger the window, the later; full is not lazy",
            order,
            _order(own, order, rows, scale),
        ),
        _item(
            "NoPE retrieves better beyond the training length", longer, _longer(own, longer, scale)
        ),
        _item(f"Convergence by {scale.long:,} steps", late, _late(late, scale)),
        _item("Windows do not differ in short-range loss", local, _local(own, local, runs, scale)),
    ]
    numbered = [f"{i}. {item}" for i, item in enumerate(items, start=1)]
    return "\n".join([_formed(own, scale), "", *numbered, "", full_arms(own, scale)])


def _formed(own: Sequence[Run], scale: ExperimentScale) -> str:
    planned = len(tables.planned(scale, "core"))
    formed = sum(run.formed.seen for run in own)
    made = "All" if len(own) == planned else f"{len(own)} of the"
    said = f"{made} {planned} runs of the main table have been made; "
    said += f"{formed} of them form retrieval within {scale.core:,} steps"
    rest = len(own) - formed
    return f"{said}, and the {rest} others are censored." if rest else f"{said}: none is censored."


def _by_claim(verdicts: Sequence[Verdict]) -> list[dict[str, Verdict]]:
    """The verdicts of each claim by positions, in the order of `claims.declared`."""
    found: dict[str, dict[str, Verdict]] = {}
    for verdict in verdicts:
        text, _, last = verdict.claim.rpartition(" (")
        found.setdefault(text, {})[last.rstrip(")")] = verdict
    return list(found.values())


def _item(title: str, found: dict[str, Verdict], facts: str) -> str:
    words = {p: _word(verdict) for p, verdict in found.items()}
    if len(set(words.values())) == 1:
        word = next(iter(words.values()))
        with_ = " with RoPE and with NoPE" if set(words) == set(POSITIONS) else ""
        return f"**{title}: {word}**{with_}. {facts}"
    each = ", ".join(f"{word} with {NAMES[p]}" for p, word in words.items())
    return f"**{title}: {each}**. {facts}"


def _word(verdict: Verdict) -> str:
    """The outcome, or why there is none."""
    fewest = min(result.seeds for result in verdict.results)
    if verdict.outcome != UNDECIDED or fewest >= FEWEST:
        return verdict.outcome
    return f"undecided ({fewest} of {FEWEST} seeds)" if fewest else MISSING


def _each(found: dict[str, Verdict], number: int) -> str:
    """The effect of one contrast with its interval, for each kind of positions."""
    effects = {p: _effect(verdict.results[number]) for p, verdict in found.items()}
    return " and ".join(f"{effect} with {NAMES[p]}" for p, effect in effects.items())


def _effect(result: Result) -> str:
    return str(result.effect) if result.seeds else f"({MISSING})"


def _retrieval(found: dict[str, Verdict], scale: ExperimentScale) -> str:
    small, large, bound = scale.small, scale.large, scale.small
    return (
        f"Where full layers see {bound} tokens, the accuracy on far copies falls by {_each(found, 0)}"
        f" (window {small}), {_each(found, 1)} (window {large}); where the efficient layers of window"
        f" {large} see {bound}, by {_each(found, 2)}."
    )


def _order(
    own: Sequence[Run],
    found: dict[str, Verdict],
    rows: Sequence[tables.Row],
    scale: ExperimentScale,
) -> str:
    names = [*(f"w{w}" for w in scale.windows[:-1]), "full"]
    said = []
    for positions, verdict in found.items():
        steps = [
            f"{name} {median(times)}"
            for name in names
            if (times := [run.formed for run in own if run.arm == f"{name}-{positions}"])
        ]
        said.append(f"Median steps with {NAMES[positions]}: {', '.join(steps)}. ")
        words = {HOLDS: "shown", BELOW: "shown, and below 10%", UNDECIDED: "undecided"}
        words[FAILS] = "refuted"
        by_word: dict[str, list[str]] = {}
        for result in verdict.results:
            pair = (
                result.contrast.removeprefix("ln(steps, ")
                .rstrip(")")
                .replace(" / ", " later than ")
            )
            by_word.setdefault(words[result.outcome], []).append(pair)
        said.append("; ".join(f"{', '.join(p)}: {word}" for word, p in by_word.items()) + ". ")
    (first, last), arms = scale.task.bins[0], (f"w{scale.large}", f"w{scale.small}")
    delays = []
    for p in found:
        far, near = (
            row_of(rows, "near", *(f"{arm}-{p} {part}" for arm in arms)) for part in ("far", "near")
        )
        if far and near:
            delays.append(
                f"{ratio(far)} for far copies and {ratio(near)} for near ones ({NAMES[p]})"
            )
    if delays:
        said.append(
            f"But near copies, from {first}–{last} tokens back, are late, too: the ratio of window"
            f" {scale.large} to window {scale.small} is {'; '.join(delays)}. What is left for far"
            " copies is measured [below](#near-and-far-copies)."
            if _near_is_late(rows, found, arms)
            else f"The ratio of window {scale.large} to window {scale.small} is {'; '.join(delays)};"
            f" near ones are from {first}–{last} tokens back ([below](#near-and-far-copies))."
        )
    return "".join(said)


def _near_is_late(
    rows: Sequence[tables.Row], positions: Sequence[str], arms: Sequence[str]
) -> bool:
    """Whether a delay of near copies is shown with every kind of positions."""
    found = [row_of(rows, "near", *(f"{arm}-{p} near" for arm in arms)) for p in positions]
    return all(row is not None and direction(row) == "shown" for row in found)


def _longer(own: Sequence[Run], found: dict[str, Verdict], scale: ExperimentScale) -> str:
    small = f"w{scale.small}"
    means = {
        p: [
            _mean(run.facts[f"length_{n}"] for run in own if run.arm == f"{small}-{p}")
            for n in ("2x", "4x")
        ]
        for p in POSITIONS
    }
    (rope, far_rope), (nope, far_nope) = means["rope"], means["nope"]
    (gain,) = (_effect(verdict.results[0]) for verdict in found.values())
    return (
        f"Accuracy at twice the length (window {scale.small}) is {nope} with NoPE and {rope} with RoPE,"
        f" a difference of {gain}; at four times, {far_nope} and {far_rope}."
    )


def _mean(values) -> str:
    found = list(values)
    return f"{np.mean(found):.2f}" if found else MISSING


def _late(found: dict[str, Verdict], scale: ExperimentScale) -> str:
    if not any(verdict.results[0].seeds for verdict in found.values()):
        return "The runs of `long` are missing."
    return (
        f"The accuracy on far copies at that step, window {scale.large} less window {scale.small},"
        f" is {_each(found, 0)}."
    )


def _local(
    own: Sequence[Run], found: dict[str, Verdict], runs: Sequence[Run], scale: ExperimentScale
) -> str:
    said = (
        f"Window {scale.large} has {_each(found, 0)} more nats of local text than window"
        f" {scale.small} at the last step that both runs of a pair have."
    )
    by_arm = tables.by_arm(own)
    counts = []
    for p in POSITIONS:
        small, large = (by_arm.get(f"w{w}-{p}", {}) for w in (scale.small, scale.large))
        seeds = sorted(set(small) & set(large))
        if not seeds:
            continue
        apart = 0
        for seed in seeds:
            step = max(set(small[seed].steps) & set(large[seed].steps))
            far = [run.far[run.steps == step][0] for run in (small[seed], large[seed])]
            apart += far[0] >= FORMED > far[1]
        counts.append(f"{apart} of {len(seeds)} pairs with {NAMES[p]}")
    if not counts:
        return said
    return (
        f"{said} There window {scale.small} retrieves and window {scale.large} does not yet in"
        f" {' and '.join(counts)}, so that a difference may be one between before and after;"
        f" [at equal steps](#chosen-after-the-results) it is compared post hoc."
    )


def full_arms(own: Sequence[Run], scale: ExperimentScale) -> str:
    """In how many seeds bounding either kind of layers loses far copies, in the arms `full`."""
    bound, said = scale.small, []
    for p in POSITIONS:
        seeds = [run for run in own if run.arm == f"full-{p}" and run.formed.seen]
        if not seeds:
            continue
        lost = [
            tuple(run.facts[f"{kind}_sees_{bound}"] < FORMED for kind in ("full", "local"))
            for run in seeds
        ]
        said.append(
            f"with {NAMES[p]}, {sum(full for full, _ in lost)} of {len(seeds)} seeds if the full"
            f" layers are bounded, {sum(local for _, local in lost)} if the layers in the window's"
            f" place are, {sum(a and b for a, b in lost)} in both cases and"
            f" {sum(not (a or b) for a, b in lost)} in neither"
        )
    if not said:
        return ""
    return (
        f"In the arms `full` all layers but the first see everything, and retrieval may settle in any"
        f" of them. Seeds that lose far copies (accuracy below {FORMED:g}) where one kind of layers sees"
        f" {bound} tokens: {'; '.join(said)}."
    )
