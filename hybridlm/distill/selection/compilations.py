"""Counts the programs that are compiled while layers are swapped: there must be none."""

from typing import Any

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """Counts the programs that are compiled, by any thread, in its `with` blocks.

    Attributes:
      count: programs so far.
    """

    def __init__(self) -> None:
        self.count, self._on = 0, False
        jax.monitoring.register_event_duration_secs_listener(self._event)

    def __enter__(self) -> "Compilations":
        self._on = True
        return self

    def __exit__(self, *_: object) -> None:
        self._on = False

    def _event(self, name: str, seconds: float, **_: Any) -> None:
        self.count += self._on and name == _EVENT
