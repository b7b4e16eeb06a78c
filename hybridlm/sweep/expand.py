"""From a recipe and its `sweep()` to runs: each validated, named, and none of them twice."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hybridlm import config as configs
from hybridlm.config import Config, flat, to_dict
from hybridlm.config.load import literal
from hybridlm.errors import ConfigError, UserError
from hybridlm.sweep.names import run_name
from hybridlm.train.setup import resolve

Pairs = tuple[tuple[str, str], ...]
ABSENT = object()  # a key that a config does not have


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Attributes:
      name: of its folder; a function of what the sweep sets in this run.
      overrides: (dotted key, text) of all that differs from the recipe, the command line's first:
        `hybridlm train --config SPEC --config.KEY=TEXT ...` is this run.
      differences: (dotted key, the recipe's value, this run's) of the resolved configs; `ABSENT`
        where one of them has no such key.
      config: resolved, its vocabulary size filled in.
    """

    name: str
    overrides: Pairs
    differences: tuple[tuple[str, Any, Any], ...]
    config: Config


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The runs of a recipe's sweep, in its order; `duplicates` were the same as an earlier one."""

    spec: str
    runs: tuple[Run, ...]
    duplicates: int


def expand(spec: str, overrides: Sequence[tuple[str, str]] = ()) -> Sweep:
    """Reads every run that `sweep()` of recipe `spec` yields.

    Args:
      spec: "file.py" or "file.py:argument".
      overrides: (dotted key, text) pairs of the command line, for every run.

    Raises:
      UserError: one sentence, which names the run where it is of one run.
    """
    yielded = configs.sweep(spec)
    base = _resolved(configs.load(spec, overrides))
    runs: dict[str, Run] = {}
    seen: set[str] = set()
    for number, settings in enumerate(yielded, start=1):
        try:
            _check_free(overrides, settings)
            pairs = (*overrides, *settings.items())
            config, _ = resolve(configs.load(spec, pairs))
        except UserError as error:
            said = " ".join(f"{key}={value}" for key, value in settings.items()) or "no override"
            raise type(error)(f"run {number} of sweep() of {spec} ({said}): {error}") from None
        new = flat(to_dict(config))
        content = json.dumps(new, sort_keys=True)
        if content in seen:
            continue
        seen.add(content)
        run = Run(_name(settings, new), pairs, _differences(base, new), config)
        if run.name in runs:
            raise ConfigError(
                f"run {number} of sweep() of {spec} would be named {run.name!r}, as an earlier one"
                " that differs from it is: set the same keys in both"
            )
        runs[run.name] = run
    return Sweep(spec, tuple(runs.values()), len(yielded) - len(runs))


def _resolved(config: Config) -> dict[str, Any]:
    return flat(to_dict(resolve(config)[0]))


def _check_free(overrides: Sequence[tuple[str, str]], settings: Mapping[str, str]) -> None:
    """The sweep would silently win over the command line."""
    for key, _ in overrides:
        for swept in settings:
            if key == swept or key.startswith(f"{swept}."):
                raise ConfigError(f"--config.{key} is set by sweep() too: leave one of them out")


def _name(settings: Mapping[str, str], resolved: Mapping[str, Any]) -> str:
    """Named by what the run sets, as it was resolved: lr 1 and 1.0 are one name."""
    said: dict[str, Any] = {}
    for key, text in settings.items():
        said |= flat(literal(text), key)
    return run_name({key: resolved.get(key, value) for key, value in said.items()})


def _differences(
    base: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[tuple[str, Any, Any], ...]:
    keys = sorted({**base, **new})
    pairs = ((key, base.get(key, ABSENT), new.get(key, ABSENT)) for key in keys)
    return tuple(pair for pair in pairs if pair[1] != pair[2])
