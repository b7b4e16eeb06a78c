"""The sentences of the README about results, each worded by what the committed tables say.

A sentence states figures and the outcome that the tests give them, so that it is true of any tables:
"holds", "holds, below the margin", "does not hold", "undecided" and "not yet run" have words of their own.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from experiments.large_window_laziness import claims, comparisons, cured, endpoint, tables
from experiments.large_window_laziness.arms import (
    ARMS,
    POSITIONS,
    RATES,
    SETS,
    SWEEP_SEEDS,
    ExperimentScale,
    seeds_of,
)
from experiments.large_window_laziness.claims import (
    ACCURACY_MARGIN,
    BELOW,
    DELAY_MARGIN,
    FAILS,
    FEWEST,
    HOLDS,
    UNDECIDED,
    Result,
    Verdict,
)
from experiments.large_window_laziness.page import NOT_RUN, median, ratio
from experiments.large_window_laziness.paired import LEVEL
from experiments.large_window_laziness.rates import rates
from experiments.large_window_laziness.runs import FORMED
from experiments.large_window_laziness.tables import Run

NAMES = {"rope": "RoPE", "nope": "NoPE"}
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
    own = _of_set(runs, scale, "core")
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
    planned = len(SETS[scale.task.name]["core"]) * len(seeds_of("core"))
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
            _row(rows, "near", *(f"{arm}-{p} {part}" for arm in arms)) for part in ("far", "near")
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
    found = [_row(rows, "near", *(f"{arm}-{p} near" for arm in arms)) for p in positions]
    return all(row is not None and _direction(row) == "shown" for row in found)


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
    by_arm = _by_arm(own)
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


def spread(runs: Sequence[Run], scale: ExperimentScale) -> str:
    """How large the margin of a delay is in standard deviations of the differences."""
    by_arm, found = _by_arm(runs), []
    for claim in claims.declared(scale):
        for contrast in claim.contrasts:
            if contrast.margin != DELAY_MARGIN:
                continue
            d = contrast.differences(by_arm, scale)
            known = d.nearest[np.isfinite(d.low) & np.isfinite(d.high)]
            if len(known) > 1:
                found.append(float(np.std(known, ddof=1)))
    if not found:
        return ""
    sizes = sorted(DELAY_MARGIN / deviation for deviation in found)
    return (
        f"The standard deviation of ln of the ratio of two steps is {min(found):.2g} to"
        f" {max(found):.2g} over these contrasts, so that a delay of {np.expm1(DELAY_MARGIN):.0%} is"
        f" {sizes[0]:.1f} to {sizes[-1]:.1f} standard deviations: how often such effects are found is"
        " measured [above](#statistics)."
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


def near_and_far(runs: Sequence[Run], rows: Sequence[tables.Row], scale: ExperimentScale) -> str:
    """Is it copying that is late with the largest window, or far copying after near copying?"""
    own = [row for row in rows if row["table"] == "near"]
    by_arm, small, large = _by_arm(runs), f"w{scale.small}", f"w{scale.large}"
    (first, last), said = scale.task.bins[0], []
    for p in POSITIONS:
        parts = {
            part: next((r for r in own if r["late"] == f"{large}-{p} {part}"), None)
            for part in ("near", "far / near")
        }
        if None in parts.values():
            continue
        steps = [
            median([comparisons.near(run, scale) for run in by_arm[f"{w}-{p}"].values()])
            for w in (small, large)
        ]
        found = {part: _direction(row) for part, row in parts.items()}
        said.append(
            f"With {NAMES[p]}, copies from {first}–{last} tokens back form at a median step of"
            f" {steps[0]} (window {scale.small}) and {steps[1]} (window {scale.large}). Window"
            f" {scale.large} is {ratio(parts['near'])} times as late on them ({found['near']}), and"
            f" takes {ratio(parts['far / near'])} times as long from near copies to far ones"
            f" ({found['far / near']}): {_PARTS[found['near'], found['far / near']]}."
        )
    return " ".join(said) or NOT_RUN


def _direction(row: tables.Row) -> str:
    """What the p of a comparison shows."""
    if float(row["p"]) > LEVEL:
        return "not shown"
    return "shown" if float(row["ratio"]) > 1 else "the reverse is shown"


_COPYING = {
    "shown": "the larger window delays copying as such",
    "not shown": "a delay of copying as such is not shown",
    "the reverse is shown": "the larger window copies from near earlier",
}
_AFTER = {
    "shown": "far copies after near ones are later still",
    "not shown": "a further delay of far copies after near ones is not shown",
    "the reverse is shown": "far copies follow near ones sooner",
}
_PARTS = {(a, b): f"{_COPYING[a]}, and {_AFTER[b]}" for a in _COPYING for b in _AFTER}


def rates_sentence(runs: Sequence[Run], scale: ExperimentScale) -> str:
    """Chosen rates at an end of the sweep, and NoPE's gain at twice the length at equal rates."""
    found = rates(runs)
    if not found:
        return ""
    said = []
    for p in POSITIONS:
        own = [r.rate for r in found if r.positions == p]
        chosen = [r.rate for r in found if r.positions == p and r.chosen]
        for which, end in (("largest", max(own)), ("smallest", min(own))) if own else ():
            if end in chosen:
                said.append(
                    f"The rate of {NAMES[p]}, {end:g}, is the {which} of the sweep, so that its best"
                    " may lie beyond."
                )
        missing = [f"{rate:g}" for rate in RATES[p] if rate not in own]
        if missing:
            said.append(f"Not yet run with {NAMES[p]}: {', '.join(missing)}.")
    gains = _at_equal_rates(runs, scale)
    if gains:
        more = sum(nope - rope >= ACCURACY_MARGIN for rope, nope in gains)
        rope, nope = zip(*gains)
        said.append(
            f"The claim beyond the training length compares NoPE and RoPE at rates of their own. At"
            f" equal rates (window {scale.small}, {len(SWEEP_SEEDS)} seeds each) accuracy at twice the"
            f" length is {min(nope):.2f} to {max(nope):.2f} with NoPE and {min(rope):.2f} to"
            f" {max(rope):.2f} with RoPE; NoPE has at least {ACCURACY_MARGIN:g} more at {more} of"
            f" {len(gains)} rates."
        )
    return " ".join(said)


def _at_equal_rates(runs: Sequence[Run], scale: ExperimentScale) -> list[tuple[float, float]]:
    """Mean accuracy at twice the length with RoPE and with NoPE, at each rate that both have."""
    found = []
    for rate in sorted({r.rate for r in rates(runs)}):
        name = f"w{scale.small}-lr{rate:g}"
        both = [[r.facts["length_2x"] for r in runs if r.arm == f"{name}-{p}"] for p in POSITIONS]
        if all(both):
            found.append(tuple(float(np.mean(values)) for values in both))
    return found


def summary(rows: Sequence[tables.Row], name: str) -> str:
    """What the p of one table of comparisons.tsv show."""
    own = [row for row in rows if row["table"] == name]
    if not own:
        return ""
    shown = [row for row in own if float(row["p"]) <= LEVEL]
    said = []
    if shown:
        listed = [
            f"{r['late']} is {'later' if float(r['ratio']) > 1 else 'earlier'} than {r['early']}"
            for r in shown
        ]
        said.append(f"Shown (p at most {LEVEL:g}): {'; '.join(listed)}.")
    rest = len(own) - len(shown)
    if rest:
        said.append(f"No difference is shown in {rest} of the {len(own)} rows.")
    few = sum(row["low"] == "0" and row["high"] == "inf" for row in own)
    if few:
        said.append(f"The intervals of {few} rows have no finite end: they say nothing.")
    return " ".join(said)


def earlier(runs: Sequence[Run], scale: ExperimentScale) -> str:
    """What differs in runs whose ends were measured by earlier code."""
    shown = [run for run in runs if run.seed not in SWEEP_SEEDS]
    old = [run for run in shown if not _current(run)]
    if not old:
        return ""
    said = (
        f"The ends of {len(old)} of the {len(shown)} runs above were measured by earlier code: their"
        " random heads were drawn from all layers"
    )
    if not any(run.arm.startswith("full-") for run in old):
        return f"{said}."
    return (
        f"{said}; in the arms `full` the best head is one of the full layers, and at twice and four times"
        f" the length the layers in the window's place saw only {scale.task.length} tokens."
    )


def earlier_cures(runs: Sequence[Run]) -> str:
    """What differs in runs of schedules that were trained by earlier code."""
    old = [
        run for run in runs if run.arm.startswith(("curriculum-", "dropout-")) and not _current(run)
    ]
    if not old:
        return ""
    return (
        f"{len(old)} runs of the doubling window and of dropout were trained by earlier code and are to"
        " be made again: the doubling window's stopped after confirmation whatever the window was, and"
        " dropout narrowed the shared layer, too."
    )


def _current(run: Run) -> bool:
    return run.facts.get("end_version") == endpoint.VERSION


def stochastic(runs: Sequence[Run], scale: ExperimentScale) -> str:
    """Which explanation of the stochastic window its counts leave."""
    found, said = cured.counted(runs, scale), []
    for p in POSITIONS:
        if f"{p}: all steps" not in found:
            continue
        interval, seeds = found[f"{p}: all steps"]
        share = f"{2 / interval.value - 1:.2f}"
        if not np.isfinite(interval.high):
            fits = f"with {seeds} seeds no interval is finite, so that nothing is decided"
        else:
            foreseen = {"narrow steps teach": 2.0, "any step teaches": 1.0}
            left = [what for what, x in foreseen.items() if interval.low <= x <= interval.high]
            if interval.low > 2:
                left = ["wide steps unlearn"]
            between = "it is between the first two" if 1 < interval.low else "it fits none of them"
            fits = f"the interval leaves {' and '.join(left)}" if left else between
        said.append(f"{share} with {NAMES[p]} ({fits})")
    if not said:
        return "The stochastic window has not yet been run."
    return (
        "If every narrow step teaches fully and every wide one a share f, all steps are 2 / (1 + f)"
        f" times as many. The means give an f of {'; '.join(said)}."
    )


def doubling(runs: Sequence[Run], scale: ExperimentScale) -> str:
    """How much of its schedule the doubling window has seen."""
    said = []
    for p in POSITIONS:
        name = f"curriculum-{p}"
        own, arm = [run for run in runs if run.arm == name], ARMS[scale.task.name][name]
        if not own:
            continue
        windows = [arm.window(step, arm.steps, 0) for step in range(arm.steps)]
        ends = [arm.window(int(run.steps[-1]) - 1, arm.steps, run.seed) for run in own]
        starts = ", ".join(
            f"{w} from step {windows.index(w):,}" for w in dict.fromkeys(windows) if w != windows[0]
        )
        formed = [run.formed.step for run in own if run.formed.seen]
        range_ = f" at steps {min(formed):,.0f} to {max(formed):,.0f}" if formed else ""
        said.append(
            (f"The doubling window is {windows[0]} at first, {starts}. " if not said else "")
            + f"With {NAMES[p]} {len(formed)} of its {len(own)} runs form retrieval{range_}, and"
            f" {sum(end == arm.final for end in ends)} have had window {arm.final} when they stop."
        )
    return " ".join(said) or "The doubling window has not yet been run."


def without_near(rows: Sequence[tables.Row], scale: ExperimentScale) -> str:
    """The delay without the shared first layer, beside that with it."""
    small, large, said = f"w{scale.small}", f"w{scale.large}", []
    for p in POSITIONS:
        row = _row(rows, "controls", f"{large}-alone-{p}", f"{small}-alone-{p}")
        whole = _row(rows, "near", f"{large}-{p} far", f"{small}-{p} far")
        if row and whole:
            said.append(f"{ratio(row)} without the layer and {ratio(whole)} with it ({NAMES[p]})")
    if not said:
        return (
            "The control that would show how much of the delay is due to the shared first layer"
            " (`alone`) has not been run."
        )
    return f"Steps of window {scale.large} over those of window {scale.small}: {'; '.join(said)}."


def _row(rows: Sequence[tables.Row], table: str, late: str, early: str) -> tables.Row | None:
    key = (table, late, early)
    return next((r for r in rows if (r["table"], r["late"], r["early"]) == key), None)


def post_hoc(folder: pathlib.Path) -> str:
    """What the p of posthoc.tsv show, and which contrast has no runs yet."""
    path = folder / "posthoc.tsv"
    rows = tables.read(path) if path.exists() else []
    said = []
    for row in rows:
        shown = "no difference is shown"
        if float(row["p"]) <= LEVEL:
            shown = f"it is {'above' if float(row['effect']) > 0 else 'below'} 0"
        said.append(f"{row['contrast']}, {NAMES[row['positions']]}: {shown}.")
    missing = [c for c in comparisons.POST_HOC_CONTRASTS if c not in {r["kind"] for r in rows}]
    said += [
        f"The contrast of {comparisons.POST_HOC_CONTRASTS[c]} has not yet been run."
        for c in missing
    ]
    return " ".join(said)


def unshown(runs: Sequence[Run], scale: ExperimentScale) -> str:
    """The sets that lack runs."""
    lacking = []
    for name, arms in SETS[scale.task.name].items():
        names, planned = {arm.name for arm in arms}, len(arms) * len(seeds_of(name))
        made = sum(run.arm in names for run in runs)
        if made < planned:
            lacking.append(f"`{name}` ({made} of {planned} runs)")
    if not lacking:
        return "- All sets have all their runs."
    return f"- Sets without all their runs: {', '.join(lacking)}."


def traces(folder: pathlib.Path, scale: ExperimentScale) -> str:
    """The figure of the traces, if there is one."""
    if not (folder / "traces.svg").exists():
        return "It has not yet been run."
    return f"![far accuracy and pull under both windows](results/{scale.task.name}/traces.svg)"


def probes(folder: pathlib.Path, scale: ExperimentScale) -> str:
    """Whether the probed runs have the arms' rates."""
    path = folder / "probes.tsv"
    if not path.exists():
        return ""
    found = {row["run"]: float(row["lr"]) for row in tables.read(path)}
    arms = ARMS[scale.task.name]
    other = [run for run, lr in found.items() if run in arms and lr != arms[run].lr]
    if not other:
        return "The runs have the learning rates of their arms."
    return (
        f"Stale: {', '.join(other)} had another learning rate than the arms have now. They say where"
        " retrieval sits, and not how soon it forms."
    )


def _of_set(runs: Sequence[Run], scale: ExperimentScale, name: str) -> list[Run]:
    names = {arm.name for arm in SETS[scale.task.name][name]}
    return [run for run in runs if run.arm in names]


def _by_arm(runs: Sequence[Run]) -> claims.Runs:
    found: claims.Runs = {}
    for run in runs:
        found.setdefault(run.arm, {})[run.seed] = run
    return found
