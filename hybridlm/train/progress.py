"""Prints progress: one line that is rewritten on a terminal, and a new line per record in a log."""

import shutil
import sys
from typing import Any, TextIO

from hybridlm import progress
from hybridlm.progress import duration


class Progress:
    """Prints training records as one live line, and messages above it."""

    def __init__(self, steps: int, stream: TextIO | None = None):
        self.steps = steps
        self.stream = stream or sys.stdout
        self._live = self.stream.isatty()

    def update(self, record: dict[str, Any]) -> None:
        """Shows a training record."""
        # A line that wraps could not be rewritten. The narrow form fits 80 columns.
        columns = shutil.get_terminal_size().columns - 1 if self._live else None
        line = self._line(record, "  ", "tokens/s")
        if columns and len(line) > columns:
            line = self._line(record, " ", "tok/s", real_mfu=False)[:columns]
        show = progress.rewrite if self._live else progress.write
        show(self.stream, line)

    def _line(self, record: dict[str, Any], space: str, rate: str, real_mfu: bool = True) -> str:
        """Figures in brackets count documents only; the others count padding, too."""
        parts = [f"step {record['step']:>{len(str(self.steps))}}/{self.steps}", *_loss(record)]
        if "tokens_per_second" in record:
            parts.append(f"{record['tokens_per_second']:,.0f} {rate}")
            parts[-1] += _real(record, "tokens_per_second", ",.0f")
        if "of_teacher_forward" in record:
            parts.append(f"{record['of_teacher_forward']:.0%} of the teacher's forward")
        if "mfu" in record:
            parts.append(f"MFU {record['mfu']:.1%}")
            parts[-1] += _real(record, "mfu", ".1%") if real_mfu else ""
        if "eta_seconds" in record:
            parts.append(f"ETA {duration(record['eta_seconds'])}")
        if record.get("skipped"):
            parts.append(f"{record['skipped']} skipped")
        return space.join(parts)

    def print(self, message: str) -> None:
        """Prints a message on a line of its own."""
        progress.write(self.stream, message)


def _real(record: dict[str, Any], figure: str, form: str) -> str:
    """The figure of documents alone, in brackets, where padding or boundaries make it smaller."""
    real = record.get(f"real_{figure}", record[figure])
    return f" ({real:{form}} real)" if real < 0.995 * record[figure] else ""


def _loss(record: dict[str, Any]) -> list[str]:
    """The loss in nats; of blockwise distillation, errors of the layers."""
    if "relative_error" in record:
        skipped = record.get("layers_skipped", 0)
        return [
            f"squared error {record['loss']:.4g}",
            f"relative {record['relative_error']:.4f}",
            *([f"{skipped:g} layers not finite"] if skipped else []),
        ]
    parts = [f"loss {record['loss']:.4f} nats", f"{record['bits_per_byte']:.4f} bits/byte"]
    return [*parts, f"KL {record['kl']:.4f} nats"] if "kl" in record else parts
