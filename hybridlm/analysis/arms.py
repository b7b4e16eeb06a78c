"""Arms: the runs of a sweep that differ in their seeds alone."""

from collections.abc import Sequence
from typing import Any

from hybridlm.sweep.names import short_key

Row = dict[str, Any]


def arms(differences: Sequence[Row], runs: Sequence[str]) -> dict[str, str]:
    """The name of each run's arm, by the run's name: "swa.window=8, lr=0.001".

    It names the settings that differ, without seeds and without those that follow from others (the
    settings of a mixer whose kind differs). "all" if nothing but seeds differs.

    Args:
      differences: `Runs.difference_rows()`.
      runs: the names of the runs.
    """
    values = {row["key"]: [str(row[name]) for name in runs] for row in differences}
    telling = _telling({key: of for key, of in values.items() if not is_seed(key)})
    texts = ([f"{short_key(key)}={values[key][i]}" for key in telling] for i in range(len(runs)))
    return {name: ", ".join(of) or "all" for name, of in zip(runs, texts)}


def is_seed(key: str) -> bool:
    """Whether a setting is a seed, which tells runs of one arm apart."""
    return key.rpartition(".")[2] == "seed"


def _telling(values: dict[str, list[str]]) -> list[str]:
    """Settings that tell arms apart: kinds first, none that an earlier one determines."""
    kept: dict[str, list[str]] = {}
    for key in sorted(values, key=lambda k: (not k.endswith(("pattern", "kind")), len(k), k)):
        if not any(_determines(other, values[key]) for other in kept.values()):
            kept[key] = values[key]
    return sorted(kept)


def _determines(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether runs that are equal in one setting are equal in the other."""
    found: dict[str, str] = {}
    return all(found.setdefault(a, b) == b for a, b in zip(one, other))
