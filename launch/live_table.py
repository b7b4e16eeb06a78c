"""A table that updates in place on a terminal; without a terminal, a line per change of state."""

import shutil
import sys
from collections.abc import Sequence
from typing import TextIO

from hybridlm.sweep.plan import align_columns

HEAD = ("run", "state", "step", "loss", "held out")


class LiveTable:
    """Shows rows of (run, state, step, loss, held-out loss)."""

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stdout
        self._live = self.stream.isatty()
        self._drawn = 0  # lines that the next drawing overwrites

    def show(self, rows: Sequence[Sequence[str]]) -> None:
        """Draws the table over the previous one; does nothing without a terminal."""
        if self._live:
            size = shutil.get_terminal_size()
            lines = self._lines(rows)
            if len(lines) >= size.lines:  # lines that scrolled off cannot be overwritten
                kept = max(1, size.lines - 2)
                lines = [*lines[:kept], f"and {len(lines) - kept} more"]
            # A wrapped line would take two lines.
            self._draw([line[: size.columns - 1] for line in lines])

    def print_line(self, message: str) -> None:
        """Prints a line above the table."""
        self._draw([])
        self.stream.write(message + "\n")
        self.stream.flush()

    def finish(self, rows: Sequence[Sequence[str]]) -> None:
        """Prints the complete table permanently."""
        self._draw([])
        self.stream.write("\n" + "\n".join(self._lines(rows)) + "\n")
        self.stream.flush()

    def _lines(self, rows: Sequence[Sequence[str]]) -> list[str]:
        return align_columns([HEAD, *rows], right=(2, 3, 4)).splitlines()

    def _draw(self, lines: list[str]) -> None:
        if self._drawn:
            self.stream.write(f"\x1b[{self._drawn}A\x1b[J")
        self.stream.writelines(line + "\n" for line in lines)
        self._drawn = len(lines)
        if self._live:
            self.stream.flush()
