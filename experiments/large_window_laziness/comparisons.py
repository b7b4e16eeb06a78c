"""Paired comparisons of times beyond the declared claims: controls, recurrences, cures, positions.

They answer questions that no claim was declared for, so they have no verdict: each table gives ratios
of times with intervals, and two-sided p that Holm's method adjusts within the table. A time that is
not seen counts with the bound that works against a difference (see `paired`).
"""

from collections.abc import Sequence

import numpy as np

from experiments.large_window_laziness import paired, tables
from experiments.large_window_laziness.arms import MAIN, POSITIONS, ExperimentScale, recurrent
from experiments.large_window_laziness.tables import Run

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


def pairs(scale: ExperimentScale = MAIN) -> dict[str, list[tuple[str, str]]]:
    """(arm, arm that its times are divided by) by table, without the suffix of the positions.

    "controls": the largest window and full attention over the smallest window under each control, and
    the control over the main table. "recurrent": each recurrence over full attention and, with a
    short convolution for all, again; Native Hybrid Attention over its window alone, and more slots
    over fewer. "cures": each schedule over its last window alone, and over the smallest window.
    "positions": NoPE over RoPE.
    """
    small, large = f"w{scale.small}", f"w{scale.large}"
    controls, others, cures = [], [], []
    for control in ("alone", "far", "conv"):
        controls += [(f"{name}-{control}", f"{small}-{control}") for name in (large, "full")]
        controls += [(f"{name}-{control}", name) for name in (small, large)]
    for name, settings in recurrent(scale).items():
        if settings["kind"] == "nha":
            window, slots = settings["window"], settings["slots"]
            others.append((name, f"w{window}"))
            if slots > scale.small:
                others.append((name, f"nha{window}x{scale.small}"))
        else:
            others += [(name, "full"), (f"{name}-conv", "full-conv")]
    for name in ("curriculum", "stochastic", "dropout"):
        cures += [(name, large), (name, small)]
    windows = [f"w{window}" for window in scale.windows[:-1]]
    return {
        "controls": controls,
        "recurrent": others,
        "cures": cures,
        "positions": [(name, name) for name in (*windows, "full")],
    }


def compared(runs: Sequence[Run], scale: ExperimentScale = MAIN) -> list[tables.Row]:
    """The rows of comparisons.tsv; comparisons without runs are left out."""
    by_arm: dict[str, dict[int, Run]] = {}
    for run in runs:
        by_arm.setdefault(run.arm, {})[run.seed] = run
    rows = []
    for table, named in pairs(scale).items():
        found = []
        for late, early in named:
            for p in POSITIONS:
                arms = (f"{late}-{p}", f"{early}-{p}")
                if table == "positions":
                    if p == "rope":
                        continue
                    arms = (f"{late}-nope", f"{early}-rope")
                found.append(_compared(table, *arms, by_arm))
        present = [row for row in found if row]
        for row, p in zip(present, paired.holm([row["p"] for row in present]), strict=True):
            rows.append(row | {"p": f"{p:.4f}"})
    return rows


def _compared(table: str, late: str, early: str, by_arm: dict[str, dict[int, Run]]) -> tables.Row:
    seeds = sorted(set(by_arm.get(late, ())) & set(by_arm.get(early, ())))
    if not seeds:
        return {}
    sides = [[by_arm[arm][seed] for seed in seeds] for arm in (late, early)]
    budgets = [min(run.facts["budget"] for run in pair) for pair in zip(*sides)]
    times = [[run.formed for run in side] for side in sides]
    d = paired.log_ratio(*times, budgets)
    effect = paired.bounded_interval(d)
    ratio = [f"{float(np.exp(x)):.3g}" for x in effect]
    p = 2 * min(paired.sign_flip(d.low), paired.sign_flip(-d.high))
    unseen = [sum(not time.seen for time in side) for side in times]
    return {
        "table": table,
        "late": late,
        "early": early,
        "seeds": len(seeds),
        "late_unseen": unseen[0],
        "early_unseen": unseen[1],
        **dict(zip(("ratio", "low", "high"), ratio)),
        "p": min(p, 1.0),
    }
