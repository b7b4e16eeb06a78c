"""The definition of a command."""

import dataclasses
from collections.abc import Callable

Overrides = list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of `hybridlm`.

    Attributes:
      name: its name on the command line.
      help: one line that says what it does.
      settings: returns the dataclasses from which its options are generated; called only for the
        chosen command, so that other commands do not import these modules.
      run: takes an instance of each dataclass, and the overrides if `takes_overrides`; returns the
        exit code.
      positional: fields that are positional arguments instead of --NAME options.
      takes_overrides: whether it takes --config.a.b=value.
      notes: returns the text below the options; called only for help.
      loads: the package that is imported before `run`, because jax and others take seconds.
    """

    name: str
    help: str
    settings: Callable[[], tuple[type, ...]]
    run: Callable[..., int]
    positional: tuple[str, ...] = ()
    takes_overrides: bool = False
    notes: Callable[[], str] = lambda: ""
    loads: str = "hybridlm.config"
