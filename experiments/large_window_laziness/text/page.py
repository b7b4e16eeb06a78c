"""The README's sentences and the table of TABLES.md about real text, from the committed tables.

Arms are paired by seed. With `SEEDS` of them no test decides, so that a sentence gives a difference's mean
and range, and whether it has one sign in all seeds.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from experiments.large_window_laziness import tables
from experiments.large_window_laziness.answers import few_seeds
from experiments.large_window_laziness.page import NOT_RUN, median, table
from experiments.large_window_laziness.paired import FEWEST_PAIRS, Time
from experiments.large_window_laziness.runs import FORMED
from experiments.large_window_laziness.tables import Row
from experiments.large_window_laziness.text.arms import TEXT, TextScale, arms
from experiments.large_window_laziness.text.table import distances

EMPTY = (
    "Not run: no accelerator was available. The CPU rehearsal at a tenth of the parameters and an eighth of"
    " the lengths ran all six arms for 40 steps, and each ended with every figure; nothing is learnt by then"
    " but the frequencies of tokens, so that its table says nothing and is not kept. The commands below"
    " train the runs, and the last one fills this block."
)


def sentences(folder: pathlib.Path, scale: TextScale = TEXT) -> str:
    """What the runs of a folder with text_runs.tsv and text_curves.tsv show."""
    runs = _runs(folder)
    if not runs:
        return EMPTY
    small, *_, large = (f"w{window}" for window in scale.windows)
    near, far = scale.windows[0], distances(scale)[-1].replace("-", "–")
    spliced, natural = (f"{kind}_gain_{distances(scale)[-1]}" for kind in ("spliced", "natural"))
    planned = len(arms(scale)) * max(len({row["seed"] for row in runs}), 1)
    said = [f"{len(runs)} of {planned} runs have been made, of {int(runs[0]['steps']):,} steps."]
    steps = []
    for arm in _arms(runs):
        own = [row for row in runs if row["arm"] == arm]
        times = [Time(float(r["formed_step"]), r["formed"] == "1") for r in own]
        seen = sum(time.seen for time in times)
        some = "" if seen == len(own) else f" ({seen} of {len(own)} runs formed)"
        steps.append(f"{arm} {median(times)}{some}")
    said.append(
        f"Retrieval of spliced copies from {far} tokens back (accuracy of at least {FORMED} twice in a row)"
        f" forms at median steps {', '.join(steps)}."
    )
    ends = [
        (f"window {large[1:]} less window {small[1:]}", f"{large}-rope", f"{small}-rope"),
        (f"full attention less window {large[1:]}", "full-rope", f"{large}-rope"),
    ]
    for what, column, unit in (
        ("The gain on these copies", spliced, "nats"),
        ("The gain on natural repeats as far back", natural, "nats"),
        ("The loss on tokens that are no repeats", "plain_nll", "nats"),
    ):
        parts = [_difference(runs, title, column, a, b, unit) for title, a, b in ends]
        said.append(_joined(f"{what} at the end, RoPE", parts))
    longer = [
        _difference(runs, f"window {w}", "longer_gain", f"w{w}-nope", f"w{w}-rope", "nats")
        for w in scale.nope
    ]
    said.append(_joined("At twice the length, gain on copies beyond it, NoPE less RoPE", longer))
    bounded = [
        _lost(runs, f"{arm}-rope", f"{group}_sees_{near}", f"{layers} of window {arm[1:]}")
        for arm, group, layers in (
            (small, "full", "full layers"),
            (large, "full", "full layers"),
            (large, "local", "window layers"),
        )
    ]
    said.append(_joined(f"Accuracy on these copies lost where layers see {near} tokens", bounded))
    seeds = [len({row["seed"] for row in runs if row["arm"] == arm}) for arm in _arms(runs)]
    if min(seeds) < FEWEST_PAIRS:
        said.append(few_seeds(seeds))
    return " ".join(part for part in said if part)


def rows(folder: pathlib.Path, scale: TextScale = TEXT) -> str:
    """A row for each run."""
    runs = _runs(folder)
    if not runs:
        return NOT_RUN
    first, last = distances(scale)[0], distances(scale)[-1]
    near = scale.windows[0]
    columns = {
        f"gain, spliced, {first} back": f"spliced_gain_{first}",
        f"{last} back": f"spliced_gain_{last}",
        f"natural, {last} back": f"natural_gain_{last}",
        "nats, no repeats": "plain_nll",
        f"needles, {last} back": f"needle_{last}",
        "twice the length: nats within": "longer_plain_within",
        "beyond": "longer_plain_beyond",
        "gain": "longer_gain",
        f"full layers see {near}": f"full_sees_{near}",
        f"window layers see {near}": f"local_sees_{near}",
        "all heads": "masked_none",
        "without the best": "masked_retrieval",
        "without random": "masked_random",
    }
    lines = []
    for row in runs:
        formed = row["formed_step"] if row["formed"] == "1" else f"> {row['formed_step']}"
        cells = [f"{float(row[column] or 'nan'):.3g}" for column in columns.values()]
        lines.append([row["arm"], row["seed"], row["steps"], formed, *cells])
    heads = " | ".join(["arm", "seed", "steps", "formed", *columns])
    return table(heads, "|---|" + "--:|" * (3 + len(columns)), lines)


def _runs(folder: pathlib.Path) -> list[Row]:
    """The rows of text_runs.tsv, each with the last measurement of its run."""
    if not (folder / "text_runs.tsv").exists():
        return []
    last = {(row["arm"], row["seed"]): row for row in tables.read(folder / "text_curves.tsv")}
    found = tables.read(folder / "text_runs.tsv")
    return [{**last[row["arm"], row["seed"]], **row} for row in found]


def _arms(runs: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["arm"] for row in runs))


def _by_seed(runs: Sequence[Row], arm: str, column: str) -> dict[str, float]:
    return {row["seed"]: float(row[column] or "nan") for row in runs if row["arm"] == arm}


def _difference(
    runs: Sequence[Row], title: str, column: str, more: str, less: str, unit: str
) -> str:
    a, b = (_by_seed(runs, arm, column) for arm in (more, less))
    return _shown(title, [a[seed] - b[seed] for seed in a if seed in b], unit)


def _lost(runs: Sequence[Row], arm: str, column: str, title: str) -> str:
    whole, bounded = (_by_seed(runs, arm, name) for name in ("masked_none", column))
    return _shown(title, [whole[seed] - bounded[seed] for seed in whole], "")


def _shown(title: str, values: Sequence[float], unit: str) -> str:
    """A difference's mean and range over the seeds, and its sign where that is one."""
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return ""
    count = f"{len(known)} seed{'s' * (len(known) > 1)}"
    sign = "of either sign"
    if min(known) > 0 or max(known) < 0:
        sign = f"{'above' if min(known) > 0 else 'below'} 0 in all"
    amount = f"{np.mean(known):.3g}{f' {unit}' if unit else ''}"
    return f"{title} {amount} ({count}: {min(known):.3g} to {max(known):.3g}; {sign})"


def _joined(what: str, parts: Sequence[str]) -> str:
    found = [part for part in parts if part]
    return f"{what}: {'; '.join(found)}." if found else ""
