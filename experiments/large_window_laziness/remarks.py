"""The sentences of the README beyond the claims, each worded by what the committed tables say."""

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
)
from experiments.large_window_laziness.claims import ACCURACY_MARGIN, DELAY_MARGIN
from experiments.large_window_laziness.page import NOT_RUN, median, ratio
from experiments.large_window_laziness.paired import FEWEST_PAIRS, LEVEL, Interval, Time
from experiments.large_window_laziness.rates import Rate, rates
from experiments.large_window_laziness.tables import Run

NAMES = {"rope": "RoPE", "nope": "NoPE"}


def spread(runs: Sequence[Run], scale: ExperimentScale) -> str:
    """How large the margin of a delay is in standard deviations of the differences."""
    by_arm, found = tables.by_arm(runs), []
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
    sizes = sorted(DELAY_MARGIN / max(deviation, 1e-9) for deviation in found)
    return (
        f"The standard deviation of ln of the ratio of two steps is {min(found):.2g} to"
        f" {max(found):.2g} over these contrasts, so that a delay of {np.expm1(DELAY_MARGIN):.0%} is"
        f" {sizes[0]:.1f} to {sizes[-1]:.1f} standard deviations: how often such effects are found is"
        " measured [above](#statistics)."
    )


def near_and_far(runs: Sequence[Run], rows: Sequence[tables.Row], scale: ExperimentScale) -> str:
    """Is it copying that is late with the largest window, or far copying after near copying?"""
    own = [row for row in rows if row["table"] == "near"]
    by_arm, small, large = tables.by_arm(runs), f"w{scale.small}", f"w{scale.large}"
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
        found = {part: direction(row) for part, row in parts.items()}
        said.append(
            f"With {NAMES[p]}, copies from {first}–{last} tokens back form at a median step of"
            f" {steps[0]} (window {scale.small}) and {steps[1]} (window {scale.large}). Window"
            f" {scale.large} is {ratio(parts['near'])} times as late on them ({found['near']}), and"
            f" takes {ratio(parts['far / near'])} times as long from near copies to far ones"
            f" ({found['far / near']}): {_PARTS[found['near'], found['far / near']]}."
        )
    return " ".join(said) or NOT_RUN


def direction(row: tables.Row) -> str:
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
        if own:
            said.append(_best_rate(p, [r for r in found if r.positions == p]))
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


def _best_rate(p: str, own: Sequence[Rate]) -> str:
    """The chosen rate of one kind of positions, and what the rates beside it cost."""
    at = next(i for i, r in enumerate(own) if r.chosen)
    best = own[at]
    which = {0: "smallest", len(own) - 1: "largest"}.get(at)
    if which:
        return (
            f"The rate of {NAMES[p]}, {best.rate:g}, is the {which} of the sweep, so that its best may"
            " lie beyond."
        )
    beside = [
        f"{r.rate:g} takes {r.step / best.step:.2f} times the steps"
        + (f" ({r.formed} of {r.runs} runs formed)" if r.formed < r.runs else "")
        for r in (own[at - 1], own[at + 1])
    ]
    return (
        f"The rate of {NAMES[p]}, {best.rate:g}, is the best of {len(own)} and lies inside the sweep:"
        f" {' and '.join(beside)}."
    )


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
    few = sum(int(row["seeds"]) < FEWEST_PAIRS for row in own)
    if few:
        said.append(
            f"Of {few} rows with fewer than {FEWEST_PAIRS} seeds the range stands in place of an interval,"
            " and no test decides them."
        )
    empty = sum(row["low"] == "0" and row["high"] == "inf" for row in own)
    if empty:
        said.append(f"{empty} rows have no finite end: they say nothing.")
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
        own = {what.removeprefix(f"{p}: "): x for what, x in found.items() if what.startswith(p)}
        if not own:
            continue
        whole, seeds = own["all steps"]
        few = seeds < FEWEST_PAIRS
        which = f"ranges of {seeds} seeds, without a test," if few else "95% intervals"
        taught = f"a wide step teaches {2 / whole.value - 1:.2f} of what a narrow one does"
        if "paces added" in own:
            paces, count = own[f"w{scale.small} over w{scale.large}"]
            taught += f", and {paces.value:.2f} in the runs of one window ({count} seeds)"
        said.append(f"With {NAMES[p]} the {which} leave {_left(own, scale)}; {taught}.")
    if not said:
        return "The stochastic window has not yet been run."
    return (
        "If every narrow step teaches fully and every wide one a share f, all steps are 2 / (1 + f)"
        f" times as many; the share is that of the means. {' '.join(said)}"
    )


def _left(own: dict[str, tuple[Interval, int]], scale: ExperimentScale) -> str:
    """The explanations whose ratio lies in its interval."""
    whole, narrow = own["all steps"][0], own["narrow steps"][0]
    added = own.get("paces added", (None, 0))[0]
    foreseen = {
        "any step teaches": whole.low <= 1 <= whole.high,
        "only narrow steps teach": narrow.low <= 1 <= narrow.high,
        "wide steps unlearn": narrow.low > 1,
        "the steps add up": added is not None and added.low <= 1 <= added.high,
    }
    left = [f'"{what}"' for what, fits in foreseen.items() if fits]
    if left:
        return " and ".join(left)
    if added is not None and added.high < 1 < whole.low:
        return (
            'what lies between "any step teaches" and "the steps add up": a wide step teaches more than in'
            f" a run of window {scale.large} alone"
        )
    return "none of the explanations"


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
        early = sum(arm.window(int(step) - 1, arm.steps, 0) == windows[0] for step in formed)
        range_ = f" at steps {min(formed):,.0f} to {max(formed):,.0f}" if formed else ""
        said.append(
            (f"The doubling window is {windows[0]} at first, {starts}. " if not said else "")
            + f"With {NAMES[p]} {len(formed)} of its {len(own)} runs form retrieval{range_}"
            f" ({early} while it is {windows[0]}), and"
            f" {sum(end == arm.final for end in ends)} have had window {arm.final} when they stop;"
            f" the mean far accuracy is {np.mean([run.far[-1] for run in own]):.2f} then."
        )
    return " ".join(said) or "The doubling window has not yet been run."


def without_near(rows: Sequence[tables.Row], scale: ExperimentScale) -> str:
    """The delay without the shared first layer, beside that with it."""
    small, large, said = f"w{scale.small}", f"w{scale.large}", []
    for p in POSITIONS:
        row = row_of(rows, "alone", f"{large}-alone-{p}", f"{small}-alone-{p}")
        whole = row_of(rows, "near", f"{large}-{p} far", f"{small}-{p} far")
        if row and whole:
            said.append(f"{ratio(row)} without the layer and {ratio(whole)} with it ({NAMES[p]})")
    if not said:
        return (
            "The control that would show how much of the delay is due to the shared first layer"
            " (`alone`) has not been run."
        )
    return f"Steps of window {scale.large} over those of window {scale.small}: {'; '.join(said)}."


def row_of(rows: Sequence[tables.Row], table: str, late: str, early: str) -> tables.Row | None:
    """The row of comparisons.tsv that compares two arms in a table, if there is one."""
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
    for name in SETS[scale.task.name]:
        planned, missing = len(tables.planned(scale, name)), tables.lacking(runs, scale, name)
        if missing:
            lacking.append(f"`{name}` ({planned - missing} of {planned} runs)")
    if not lacking:
        return "- All sets have all their runs."
    return f"- Sets without all their runs: {', '.join(lacking)}."


def traces(folder: pathlib.Path, scale: ExperimentScale) -> str:
    """What the traces of the stochastic window show, and their figure."""
    if not (folder / "traces.svg").exists():
        return "It has not yet been run."
    image = f"![far accuracy and pull under both windows](results/{scale.task.name}/traces.svg)"
    found = [
        pull
        for pull in cured.pulls(tables.read(folder / "traces.tsv"), scale)
        if pull.arm.startswith("stochastic-")
    ]
    if not found:
        return image
    said = []
    for what, column in (("the queries and keys of the full layers", 0), ("all parameters", 1)):
        pairs = [(pull.small[column], pull.large[column]) for pull in found]
        stronger = sum(small > large for small, large in pairs)
        small, large = np.mean(pairs, axis=0)
        said.append(
            f"on {what} it is the stronger one in {stronger} of {len(pairs)} runs (means {small:.2g}"
            f" and {large:.2g} nats per unit of distance)"
        )
    steps = ", ".join(
        f"{_step(pull.formed_small)} and {_step(pull.formed_large)} ({NAMES[pull.arm[-4:]]}, seed"
        f" {pull.seed})"
        for pull in found
    )
    return (
        f"{image}\n\nBefore retrieval forms, the pull under window {scale.small} is compared with that"
        f" under window {scale.large} in the runs of the stochastic window: {' and '.join(said)}. Measured"
        f" with window {scale.small} and with window {scale.large}, retrieval forms at steps {steps}."
    )


def _step(time: Time) -> str:
    return f"{'' if time.seen else '> '}{time.step:,.0f}"


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
