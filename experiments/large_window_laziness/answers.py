"""The README's sentences about controls, recurrences, NHA and cures, worded by the committed tables.

They say what a test shows; of fewer than `paired.FEWEST_PAIRS` seeds, which no test decides, what all of
them have in common. The rows that they sum up stand in TABLES.md.
"""

import re
from collections.abc import Mapping, Sequence

from experiments.large_window_laziness import comparisons, tables
from experiments.large_window_laziness.arms import CONTROLS, POSITIONS, ExperimentScale
from experiments.large_window_laziness.page import NOT_RUN, median, ratio
from experiments.large_window_laziness.paired import FEWEST_PAIRS, LEVEL
from experiments.large_window_laziness.remarks import NAMES, row_of
from experiments.large_window_laziness.tables import Run

CALLED = {
    "full": "full attention",
    "gdn": "Gated DeltaNet",
    "lightning": "Lightning",
    "mamba2": "Mamba-2",
    "curriculum": "the doubling window",
    "stochastic": "the stochastic window",
}
SETS_OF = {"nha": "recurrent"}  # the set of a table's arms, where it has another name


def answer(
    name: str, runs: Sequence[Run], rows: Sequence[tables.Row], scale: ExperimentScale
) -> str:
    """What a table of comparisons.tsv shows: medians, and ratios grouped by what is known of them.

    Args:
      name: of a table of `comparisons.pairs`.
      rows: of comparisons.tsv.
    """
    own = [row for row in rows if row["table"] == name]
    made = arms_of(name, runs, scale)
    if not made:
        return NOT_RUN
    said = [medians(made)]
    if name in CONTROLS:
        said.append(_delays(name, rows, scale))
    said += [_against(own, title, named) for title, named in _partners(name, scale)]
    if any(int(row["seeds"]) < FEWEST_PAIRS for row in own):
        said.append(few_seeds([int(row["seeds"]) for row in own]))
    return " ".join(part for part in said if part)


def arms_of(name: str, runs: Sequence[Run], scale: ExperimentScale) -> list[Run]:
    """The runs of the arms that a table of comparisons is about."""
    own = tables.of_set(runs, scale, SETS_OF.get(name, name))
    if name in ("recurrent", "nha"):
        own = [run for run in own if run.arm.startswith("nha") == (name == "nha")]
    return own


def called(arm: str) -> str:
    """An arm's name in words, from its name without the positions; a control's has that of its arm."""
    base, _, _ = arm.partition("-")
    if found := re.fullmatch(r"w(\d+)", base):
        return f"window {found[1]}"
    if found := re.fullmatch(r"nha(\d+x\d+)", base):
        return f"NHA {found[1]}"
    return CALLED.get(base, base)


def medians(own: Sequence[Run]) -> str:
    """The median step of each arm by positions, and how many of its runs formed where not all did."""
    found: dict[str, dict[str, str]] = {}
    for arm in dict.fromkeys(run.arm for run in own):
        name, _, p = arm.rpartition("-")
        times = [run.formed for run in own if run.arm == arm]
        seen = sum(time.seen for time in times)
        some = "" if seen == len(times) else f" ({seen} of {len(times)} formed)"
        found.setdefault(name, {})[p] = f"{median(times)}{some}"
    said = [f"{called(name)} {_both(values)}" for name, values in found.items()]
    return f"Median steps with {' and '.join(NAMES.values())}: {'; '.join(said)}."


def _both(values: Mapping[str, str]) -> str:
    """A figure with either kind of positions; a dash where there is none."""
    return ", ".join(values.get(p, "–") for p in POSITIONS)


def known(row: tables.Row) -> str:
    """What a comparison shows, as a predicate: a test's result, or what all seeds have in common."""
    if row["ratio"] == "nan":
        return "not compared, as no time is known"
    later, seeds = float(row["ratio"]) > 1, int(row["seeds"])
    if float(row["p"]) <= LEVEL:
        return f"{'later' if later else 'earlier'} (shown)"
    if seeds >= FEWEST_PAIRS:
        return "not shown to differ"
    if float(row["low"]) > 1 or float(row["high"]) < 1:
        return f"{'later' if later else 'earlier'} in all {seeds} seeds"
    return f"neither earlier nor later in all {seeds} seeds"


def few_seeds(seeds: Sequence[int]) -> str:
    """Why comparisons of so few seeds are not decided."""
    few = sorted({n for n in seeds if n < FEWEST_PAIRS})
    listed = " or ".join(map(str, few))
    return f"{listed} seeds: not decided by test (the least p is {2.0 ** (1 - max(few)):.3g})."


def _partners(name: str, scale: ExperimentScale) -> list[tuple[str, list[tuple[str, str]]]]:
    """(what the times are divided by, pairs) of the sentences of a table."""
    found: dict[str, list[tuple[str, str]]] = {}
    for late, early in comparisons.pairs(scale)[name]:
        if (late, early) == (f"w{scale.large}-{name}", f"w{scale.small}-{name}"):
            continue  # in `_delays`
        if name in CONTROLS and not early.endswith(f"-{name}"):
            over = "without the control"
        elif name == "nha" and early.startswith("w"):
            over = "of its window alone"
        elif name == "nha":
            same = late.split("x")[0] == early.split("x")[0]
            over = "with fewer slots" if same else "with a smaller window"
        else:
            over = f"of {called(early)}"
        found.setdefault(over, []).append((late, early))
    return list(found.items())


def _against(rows: Sequence[tables.Row], over: str, named: Sequence[tuple[str, str]]) -> str:
    """The ratios of pairs with RoPE and NoPE, grouped by what is known of them."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for late, early in named:
        keys = {p: (f"{late}-{p}", f"{early}-{p}") for p in POSITIONS}
        own = {p: row for p in POSITIONS for row in rows if (row["late"], row["early"]) == keys[p]}
        if own:
            words = tuple((p, known(row)) for p, row in own.items())
            ratios = _both({p: _bounded(row) for p, row in own.items()})
            groups.setdefault(words, []).append(f"{called(late)} ({ratios})")
    said = []
    for words, arms in groups.items():
        if len(words) == len(POSITIONS) and len({word for _, word in words}) == 1:
            each = f"{words[0][1]} with both"
        else:
            each = " and ".join(f"{word} with {NAMES[p]}" for p, word in words)
        said.append(f"{_listed(arms)} {'is' if len(arms) == 1 else 'are'} {each}")
    return f"Steps over those {over}: {'; '.join(said)}." if said else ""


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _bounded(row: tables.Row) -> str:
    """The ratio, as a bound where a run of one side has not retrieved."""
    late, early = int(row["late_unseen"]), int(row["early_unseen"])
    if row["ratio"] == "nan" or (late and early):
        return "no bound"
    return f"{'> ' if late else '< ' if early else ''}{row['ratio']}"


def _delays(control: str, rows: Sequence[tables.Row], scale: ExperimentScale) -> str:
    """The largest window's delay under a control, and over that of the main table."""
    small, large, said = f"w{scale.small}", f"w{scale.large}", []
    for p in POSITIONS:
        under = row_of(rows, control, f"{large}-{control}-{p}", f"{small}-{control}-{p}")
        names = (f"{large}{end}-{p} / {small}{end}-{p}" for end in (f"-{control}", ""))
        change = row_of(rows, control, *names)
        if under and change:
            words = known(change).replace("later", "larger").replace("earlier", "smaller")
            said.append(
                f"{ratio(under)} with {NAMES[p]}, {ratio(change)} times that of the main table ({words})"
            )
    if not said:
        return ""
    return (
        f"Window {scale.large}'s delay, its steps over those of window {scale.small}, is"
        f" {'; '.join(said)}."
    )
