"""Says on stderr what takes longer than two seconds, and keeps one rewritten line on a terminal."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

PATIENCE = 2.0  # seconds before `doing` says anything

_lock = threading.RLock()
_live: tuple[TextIO, int] | None = None  # the stream with a rewritten line, and the line's length
_running: list[object] = []  # nested work, innermost last: only that is shown
_silent = False


def silence() -> None:
    """Makes `doing` say nothing in this process, e.g. on hosts other than the first."""
    global _silent
    _silent = True


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Context of work that may take long; `what` is a phrase such as "compiling the step".

    After `PATIENCE` seconds it prints the phrase, and at the end the phrase with the elapsed time. On
    a terminal this is one line, rewritten every second.
    """
    if _silent:
        yield
        return
    ended, started = threading.Event(), time.monotonic()
    shown = False

    def watch() -> None:
        nonlocal shown
        pause = PATIENCE
        while not ended.wait(pause):
            pause = 1.0
            with _lock:
                if ended.is_set() or _running[-1] is not ended:
                    continue
                if sys.stderr.isatty():
                    rewrite(sys.stderr, f"{what} ... {duration(time.monotonic() - started)}")
                elif not shown:
                    write(sys.stderr, f"{what} ...")
                shown = True

    _running.append(ended)
    threading.Thread(target=watch, name="progress", daemon=True).start()
    try:
        yield
    finally:
        with _lock:
            ended.set()
            _running.remove(ended)
            if shown:
                write(sys.stderr, f"{what}: {duration(time.monotonic() - started)}")


def say(line: str) -> None:
    """Prints a line on stderr, unless `silence` was called."""
    if not _silent:
        write(sys.stderr, line)


def rewrite(stream: TextIO, line: str) -> None:
    """Shows `line` on a terminal in place of the line that this function showed before."""
    global _live
    with _lock:
        if _live is not None and _live[0] is not stream:
            _clear()
        before = 0 if _live is None else _live[1]
        stream.write("\r" + line.ljust(before))
        stream.flush()
        _live = stream, len(line)


def write(stream: TextIO, line: str) -> None:
    """Prints `line` on a line of its own, above the rewritten line."""
    with _lock:
        _clear()
        stream.write(line + "\n")
        stream.flush()


def _clear() -> None:
    """Removes the rewritten line."""
    global _live
    if _live is not None:
        stream, length = _live
        _live = None
        with contextlib.suppress(ValueError, OSError):  # the stream may have been closed
            stream.write("\r" + " " * length + "\r")
            stream.flush()


def duration(seconds: float) -> str:
    """ "1h02m", "3m05s" or "42s"."""
    seconds = max(0, round(seconds))
    hours, minutes, rest = seconds // 3600, seconds // 60 % 60, seconds % 60
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
