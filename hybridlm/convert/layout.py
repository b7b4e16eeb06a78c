"""From a list of layers to the settings of a model: names of mixers, and a pattern over the depth."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Settings = Mapping[str, Any]


class LayerSettings(NamedTuple):
    """One layer.

    Attributes:
      name: what its mixer is called, e.g. "full"; layers of one name with other settings get a number.
      mixer: its settings with `kind`; None for a layer without one.
      feedforward: its settings with `kind`; None for a layer without one.
      feedforward_name: as `name`, where the layers' feed-forwards differ.
    """

    name: str
    mixer: Settings | None
    feedforward: Settings | None
    feedforward_name: str = "mlp"


def laid_out(layers: Sequence[LayerSettings]) -> dict[str, Any]:
    """The settings depth, pattern, prefix, suffix, mixers, mlp and feedforwards of a model."""
    mixers, mixer_names = _named([(x.name, x.mixer) for x in layers])
    feeds, feed_names = _named([(x.feedforward_name, x.feedforward) for x in layers])
    found = {"depth": len(layers), "mixers": mixers}
    if len({*feed_names}) == 1:
        return found | fold(mixer_names) | {"mlp": layers[0].feedforward}
    labels = [f"{mixer}+{feed}" for mixer, feed in zip(mixer_names, feed_names)]
    return found | fold(labels) | {"mlp": None, "feedforwards": feeds}


def fold(labels: Sequence[str]) -> dict[str, str]:
    """The prefix, pattern and suffix with the fewest different layers that give these labels.

    The program that is compiled has the layers of the prefix, one unit and what follows it.
    """
    depth = len(labels)
    best = (depth, 0, depth, 0)
    for before in range(min(depth, 9)):
        for unit in range(1, min(depth - before, 65)):
            if before + unit >= best[0]:
                break
            run = unit
            while before + run < depth and labels[before + run] == labels[before + run % unit]:
                run += 1
            after = depth - before - run
            rest = run % unit if after == 0 else 0
            if after:  # whole units only, then the suffix
                after += run % unit
            cost = before + unit + after + rest
            best = min(best, (cost, before, unit, after))
    _, before, unit, after = best
    return {
        "prefix": terms(labels[:before]),
        "pattern": terms(labels[before : before + unit]),
        "suffix": terms(labels[depth - after :]) if after else "",
    }


def terms(labels: Sequence[str]) -> str:
    """Labels as a pattern writes them, with counts."""
    runs: list[list[Any]] = []
    for label in labels:
        if runs and runs[-1][0] == label:
            runs[-1][1] += 1
        else:
            runs.append([label, 1])
    return " ".join(label if n == 1 else f"{label}*{n}" for label, n in runs)


def _named(
    entries: Sequence[tuple[str, Settings | None]],
) -> tuple[dict[str, Settings], list[str]]:
    """Different settings by different names, and the name of each entry ("none" without settings)."""
    named: dict[str, Settings] = {}
    names = []
    for name, settings in entries:
        if settings is None:
            names.append("none")
            continue
        number, label = 1, name
        while label in named and named[label] != settings:
            number += 1
            label = f"{name}_{number}"
        named[label] = settings
        names.append(label)
    return named, names
