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
        self.count = 0

    def __enter__(self) -> "Compilations":
        jax.monitoring.register_event_duration_secs_listener(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._event)

    def _event(self, name: str, seconds: float, **_: Any) -> None:
        self.count += name == _EVENT
