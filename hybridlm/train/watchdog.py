"""Ends a process that hangs, and prints where."""

import faulthandler
import os
import sys
import threading
import time

import jax

from hybridlm.errors import TRY_AGAIN


class Watchdog:
    """Ends the process if `beat` is not called again within `seconds`. A context manager.

    A step that waits for a lost host or a stuck disk never returns and raises no exception, so the
    watchdog prints the stacks of all threads. It starts to count at the first `beat`.
    """

    def __init__(self, seconds: float | None):
        self.seconds = seconds
        self._doing, self._since = "", None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self.seconds is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    def beat(self, doing: str) -> None:
        """Restarts the timeout; `doing` names what the process does next."""
        self._doing, self._since = doing, time.monotonic()

    def _watch(self) -> None:
        while not self._done.wait(min(self.seconds / 4, 5.0)):
            waited = 0 if self._since is None else time.monotonic() - self._since
            if waited > self.seconds:
                print(
                    f"hybridlm: host {jax.process_index()} of {jax.process_count()} has hung for"
                    f" {waited:.0f} s in {self._doing} (train.hang_seconds {self.seconds:g}); the"
                    " stacks of its threads follow, and the same command resumes from the newest"
                    " checkpoint",
                    file=sys.stderr,
                )
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                os._exit(TRY_AGAIN)
