"""What a command is."""

import dataclasses
from collections.abc import Callable

Overrides = list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Command:
    """A command of `hybridlm`.

    Attributes:
      name: as it is typed.
      help: what it does, in a line.
      settings: gives the dataclasses from which its options are generated; called when the command
        is named, so that other commands do not wait for their modules.
      run: takes an instance of each, and then the overrides where there are any; returns the exit
        code.
      positional: fields that are given by their place and not as --NAME.
      takes_overrides: whether it takes --config.a.b=value.
      notes: gives what stands below the options; called for help only.
    """

    name: str
    help: str
    settings: Callable[[], tuple[type, ...]]
    run: Callable[..., int]
    positional: tuple[str, ...] = ()
    takes_overrides: bool = False
    notes: Callable[[], str] = lambda: ""
