"""Paired comparisons beyond the declared claims: controls, recurrences, cures, positions, near copies.

They answer questions that no claim was declared for, so they have no verdict: each table gives ratios
of times with intervals, and two-sided p that Holm's method adjusts within the table. Of fewer than
`paired.FEWEST_PAIRS` seeds, which no such test decides, the range stands in place of the interval. A
time that is not seen counts with the bound that works against a difference (see `paired`). The
contrasts of `post_hoc` were chosen after their claim's result was known.
"""

from collections.abc import Sequence

import numpy as np

from experiments.large_window_laziness import paired, tables
from experiments.large_window_laziness.arms import (
    CONTROLS,
    MAIN,
    POSITIONS,
    ExperimentScale,
    recurrent,
)
from experiments.large_window_laziness.paired import Bounds, Time
from experiments.large_window_laziness.runs import FORMED
from experiments.large_window_laziness.tables import Run, Runs

COLUMNS = (
    "table",
    "late",
    "early",
    "seeds",
    "late_unseen",
    "early_unseen",
    "ratio",
    "low",
    "high",
    "p",
)
POST_HOC = ("kind", "contrast", "positions", "seeds", "effect", "low", "high", "p")
POST_HOC_CONTRASTS = {"local": "the loss on local text", "entropy": "the best head's entropy"}


def pairs(scale: ExperimentScale = MAIN) -> dict[str, list[tuple[str, str]]]:
    """(arm, arm that its times are divided by) by table, without the suffix of the positions.

    "alone", "far", "conv": the largest window and full attention over the smallest window under the
    control, and each of the three over the main table; recurrences with the short convolution over
    full attention with it, and over themselves without. "recurrent": each recurrence over full
    attention and over the smallest and the largest window. "nha": Native Hybrid Attention over its
    window alone, more slots over fewer, and a larger window over a smaller one. "cures": each
    schedule over its last window alone, and over the smallest window. "positions": NoPE over RoPE.
    """
    small, large = f"w{scale.small}", f"w{scale.large}"
    found: dict[str, list[tuple[str, str]]] = {}
    for control in CONTROLS:
        found[control] = [(f"{name}-{control}", f"{small}-{control}") for name in (large, "full")]
        found[control] += [(f"{name}-{control}", name) for name in (small, large, "full")]
    found |= {"recurrent": [], "nha": []}
    for name, settings in recurrent(scale).items():
        if settings["kind"] == "nha":
            window, slots = settings["window"], settings["slots"]
            found["nha"].append((name, f"w{window}"))
            if slots > scale.small:
                found["nha"].append((name, f"nha{window}x{scale.small}"))
            if window > scale.small:
                found["nha"].append((name, f"nha{scale.small}x{slots}"))
        else:
            found["recurrent"] += [(name, other) for other in ("full", small, large)]
            found["conv"] += [(f"{name}-conv", other) for other in ("full-conv", name)]
    schedules = ("curriculum", "stochastic", "dropout")
    windows = [f"w{window}" for window in scale.windows[:-1]]
    return found | {
        "cures": [(name, other) for name in schedules for other in (large, small)],
        "positions": [(name, name) for name in (*windows, "full")],
    }


def compared(runs: Sequence[Run], scale: ExperimentScale = MAIN) -> list[tables.Row]:
    """The rows of comparisons.tsv; comparisons without runs are left out."""
    by_arm = tables.by_arm(runs)
    tested = {"near": _near(by_arm, scale)}
    for table, named in pairs(scale).items():
        found = tested.setdefault(table, [])
        for late, early in named:
            for p in POSITIONS:
                arms = (f"{late}-{p}", f"{early}-{p}")
                if table == "positions":
                    if p == "rope":
                        continue
                    arms = (f"{late}-nope", f"{early}-rope")
                found.append(_compared(table, *arms, by_arm))
        if table in CONTROLS:
            found += [_delays(table, p, by_arm, scale) for p in POSITIONS]
    return [row for found in tested.values() for row in _adjusted(found)]


def _delays(control: str, positions: str, by_arm: Runs, scale: ExperimentScale) -> tables.Row:
    """The largest window's delay under a control over that of the main table."""
    arms = [f"w{window}{end}-{positions}" for end in (f"-{control}", "") for window in _ends(scale)]
    times = [{seed: run.formed for seed, run in by_arm.get(arm, {}).items()} for arm in arms]
    names = [" / ".join(pair) for pair in (arms[:2], arms[2:])]
    return _ratio(control, *names, tuple(times[:2]), tuple(times[2:]))


def _ends(scale: ExperimentScale) -> tuple[int, int]:
    return scale.large, scale.small


def _adjusted(found: Sequence[tables.Row]) -> list[tables.Row]:
    """The rows that have runs, with p that Holm's method adjusts."""
    present = [row for row in found if row]
    adjusted = paired.holm([row["p"] for row in present])
    return [row | {"p": f"{p:.4f}"} for row, p in zip(present, adjusted, strict=True)]


def near(run: Run, scale: ExperimentScale = MAIN) -> Time:
    """When copies from the smallest distances formed, by the rule of far ones.

    They lie beyond the window of the shared first layer.
    """
    return paired.first_lasting(run.steps, run.curve[tables.distances(scale)[0]], FORMED)


def _near(by_arm: Runs, scale: ExperimentScale) -> list[tables.Row]:
    """Far over near copies of each window; and the largest window over the smallest in each part.

    ln(far) = ln(near) + ln(far / near), so that the delay of far copies is that of near copies times
    that of far copies after near ones.
    """
    arms = [*(f"w{window}" for window in scale.windows[:-1]), "full"]
    small, large = f"w{scale.small}", f"w{scale.large}"
    rows = []
    for positions in POSITIONS:
        far_of, near_of = {}, {}
        for arm in arms:
            runs = by_arm.get(f"{arm}-{positions}", {})
            far_of[arm] = {seed: run.formed for seed, run in runs.items()}
            near_of[arm] = {seed: near(run, scale) for seed, run in runs.items()}
        named = [(f"{arm}-{positions}", (far_of[arm],), (near_of[arm],)) for arm in arms]
        rows += [
            _ratio("near", f"{name} far", f"{name} near", late, early)
            for name, late, early in named
        ]
        parts = {"far": (far_of,), "near": (near_of,), "far / near": (far_of, near_of)}
        for part, times in parts.items():
            sides = [tuple(t[arm] for t in times) for arm in (large, small)]
            names = [f"{arm}-{positions} {part}" for arm in (large, small)]
            rows.append(_ratio("near", *names, *sides))
    return rows


def _ratio(
    table: str,
    late: str,
    early: str,
    above: tuple[dict[int, Time], ...],
    below: tuple[dict[int, Time], ...],
) -> tables.Row:
    """A row of one side's times over the other's, each by seed; a side may be a ratio itself.

    A time that is not seen lies beyond its own run's last step.
    """
    seeds = sorted(set.intersection(*(set(times) for times in (*above, *below))))
    if not seeds:
        return {}
    sides = []
    for side in (above, below):
        first, *rest = [Bounds.log_times([times[seed] for seed in seeds]) for times in side]
        sides.append(first.less(rest[0]) if rest else first)
    unseen = [sum(not times[s].seen for times in side for s in seeds) for side in (above, below)]
    return _row(table, late, early, sides[0].less(sides[1]), unseen)


def post_hoc(runs: Sequence[Run], scale: ExperimentScale = MAIN) -> list[tables.Row]:
    """The rows of posthoc.tsv: the largest window less the smallest, at the last steps of the runs.

    "local": nats of local text after the long budget. The claim compares them at the last step that
    both runs have, where the smaller window's run retrieves already and the larger's may not.
    "entropy": the normalised entropy of the best head of the main table, where the paper's is highest
    for the largest window. p are adjusted over all rows by Holm's method.
    """
    small, large = f"w{scale.small}", f"w{scale.large}"
    named = {
        "local": (f"nats of local text at step {scale.long:,}", "local_nll", "-long"),
        "entropy": ("normalised entropy of the best head at the end", "entropy", ""),
    }
    rows = []
    for kind, (what, column, ending) in named.items():
        for positions in POSITIONS:
            more, less = (
                {run.seed: run.curve[column][-1] for run in runs if run.arm == arm}
                for arm in (f"{window}{ending}-{positions}" for window in (large, small))
            )
            d = np.array([more[seed] - less[seed] for seed in sorted(set(more) & set(less))])
            if not len(d):
                continue
            rows.append(
                {
                    "kind": kind,
                    "contrast": f"{what}, {large} - {small}",
                    "positions": positions,
                    "seeds": len(d),
                    **{
                        n: f"{x:.3g}" for n, x in zip(("effect", "low", "high"), paired.interval(d))
                    },
                    "p": paired.two_sided(Bounds.known(d)),
                }
            )
    return _adjusted(rows)


def _compared(table: str, late: str, early: str, by_arm: Runs) -> tables.Row:
    seeds = sorted(set(by_arm.get(late, ())) & set(by_arm.get(early, ())))
    if not seeds:
        return {}
    sides = [[by_arm[arm][seed] for seed in seeds] for arm in (late, early)]
    budgets = [min(run.facts["budget"] for run in pair) for pair in zip(*sides)]
    times = [[run.formed for run in side] for side in sides]
    d = paired.log_ratio(*times, budgets)
    unseen = [sum(not time.seen for time in side) for side in times]
    return _row(table, late, early, d, unseen)


def _row(table: str, late: str, early: str, d: Bounds, unseen: Sequence[int]) -> tables.Row:
    effect = paired.interval_or_range(d)
    ratio = [f"{float(np.exp(x)):.3g}" for x in effect]
    return {
        "table": table,
        "late": late,
        "early": early,
        "seeds": len(d.nearest),
        "late_unseen": unseen[0],
        "early_unseen": unseen[1],
        **dict(zip(("ratio", "low", "high"), ratio)),
        "p": paired.two_sided(d),
    }
