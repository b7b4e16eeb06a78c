"""Expands a recipe's `sweep()` to runs: validates and names each, and drops duplicates."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from hybridlm import config as configs
from hybridlm.config import Config, flat, to_dict
from hybridlm.config.load import literal
from hybridlm.errors import ConfigError, UserError
from hybridlm.settings import json_text
from hybridlm.sweep.names import run_name
from hybridlm.train.setup import resolve

Pairs = tuple[tuple[str, str], ...]
ABSENT = object()  # the value of a key that a config does not have


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
      name: the name of its folder; depends only on the settings that the sweep gives this run.
      overrides: (dotted key, text) of the command line's settings, then of the sweep's;
        `hybridlm train --config SPEC --config.KEY=TEXT ...` trains this run.
      differences: (dotted key, value in the recipe, value in this run) of the resolved configs;
        `ABSENT` if one of them does not have the key.
      config: the resolved config, with its vocabulary size.
    """

    name: str
    overrides: Pairs
    differences: tuple[tuple[str, Any, Any], ...]
    config: Config


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The runs of a recipe's sweep, in its order, without `duplicates` equal to earlier runs."""

    spec: str
    runs: tuple[SweepRun, ...]
    duplicates: int


def expand(spec: str, overrides: Sequence[tuple[str, str]] = ()) -> Sweep:
    """Reads all runs that `sweep()` of recipe `spec` yields.

    Args:
      spec: "file.py" or "file.py:argument".
      overrides: (dotted key, text) pairs of the command line, for every run.

    Raises:
      UserError: if the recipe, the sweep or a run is invalid; one sentence that names the run.
    """
    yielded = configs.sweep(spec)
    base = _resolved(configs.load(spec, overrides))
    runs: dict[str, SweepRun] = {}
    seen: set[str] = set()
    for number, settings in enumerate(yielded, start=1):
        try:
            _check_no_conflict(overrides, settings)
            pairs = (*overrides, *settings.items())
            config, _ = resolve(configs.load(spec, pairs))
        except UserError as error:
            text = " ".join(f"{key}={value}" for key, value in settings.items()) or "no override"
            raise type(error)(f"run {number} of sweep() of {spec} ({text}): {error}") from None
        new = flat(to_dict(config))
        content = json_text.dumps(new, sort_keys=True)
        if content in seen:
            continue
        seen.add(content)
        run = SweepRun(_name(settings, new), pairs, _differences(base, new), config)
        if run.name in runs:
            raise ConfigError(
                f"run {number} of sweep() of {spec} has the name {run.name!r} of an earlier run"
                " with other settings: set the same keys in both"
            )
        runs[run.name] = run
    return Sweep(spec, tuple(runs.values()), len(yielded) - len(runs))


def _resolved(config: Config) -> dict[str, Any]:
    return flat(to_dict(resolve(config)[0]))


def _check_no_conflict(overrides: Sequence[tuple[str, str]], settings: Mapping[str, str]) -> None:
    """Refuses a command-line setting that the sweep would silently override."""
    for key, _ in overrides:
        for swept in settings:
            if key == swept or key.startswith(f"{swept}."):
                raise ConfigError(f"--config.{key} is set by sweep() too: leave one of them out")


def _name(settings: Mapping[str, str], resolved: Mapping[str, Any]) -> str:
    """The name by the resolved settings of the run: lr 1 and 1.0 give the same name."""
    given: dict[str, Any] = {}
    for key, text in settings.items():
        given |= flat(literal(text), key)
    return run_name({key: resolved.get(key, value) for key, value in given.items()})


def _differences(
    base: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[tuple[str, Any, Any], ...]:
    keys = sorted({**base, **new})
    pairs = ((key, base.get(key, ABSENT), new.get(key, ABSENT)) for key in keys)
    return tuple(pair for pair in pairs if pair[1] != pair[2])
