"""One process of a visit: imports what it is told, waits for an item on stdin, and runs it.

`python -m benchmarks.gpu_visit.worker MODULE ...`; the item is one line of JSON. It exits with 0, or with
`runner.FAILED` and a last line "FAILED sentence" if the item raised. It also exits when stdin closes: the
runner has died.
"""

import contextlib
import importlib
import json
import os
import pathlib
import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu_visit import faults
from benchmarks.gpu_visit.runner import FAILED, append


class Writer:
    """Appends records to the results, each on disk when `write` returns."""

    def __init__(self, path: pathlib.Path, item: str):
        self.path, self.item, self.count = path, item, 0

    def write(self, kind: str, **values: Any) -> None:
        """A record; raises ValueError for NaN or infinity."""
        record = {"kind": kind, "item": self.item, **values}
        append(self.path, (json.dumps(record, allow_nan=False) + "\n").encode())
        self.count += 1
        faults.strike(self.count)


def main(modules: Sequence[str]) -> None:
    for name in modules:
        with contextlib.suppress(ImportError):  # the item says what it lacks
            importlib.import_module(name)
    line = sys.stdin.readline()
    if not line:
        return
    job = json.loads(line)
    threading.Thread(target=_exit_at_end_of_input, daemon=True).start()
    try:
        faults.plant(job["fault"])
        module, function = job["task"].split(":")
        writer = Writer(pathlib.Path(job["results"]), job["item"])
        getattr(importlib.import_module(module), function)(writer, **job["given"])
    except BaseException as error:
        traceback.print_exc()
        print(f"\nFAILED {sentence(error)}", flush=True)
        _exit(FAILED)
    _exit(0)


def _exit_at_end_of_input() -> None:
    sys.stdin.read()
    os._exit(1)


def _exit(code: int) -> None:
    """Leaves at once: after a fault on the chip, the libraries' own ends may hang."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


if __name__ == "__main__":
    main(sys.argv[1:])
