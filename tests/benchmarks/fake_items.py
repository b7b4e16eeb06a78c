"""Tiny items that the tests of a visit's runner run in real processes."""

import importlib
import math
import pathlib
import subprocess
import sys
import time

from benchmarks.gpu_visit import faults


def write(out, records=1, seconds=0.0, log=None):
    """Writes some records, then takes some time; notes each run in the file `log`."""
    if log:
        with open(log, "a") as file:
            file.write(out.item + "\n")
    for number in range(records):
        out.write("record", number=number)
    time.sleep(seconds)


def leave_a_child(out, pid):
    """Starts a process that would live on, and writes its number."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    pathlib.Path(pid).write_text(str(child.pid))
    out.write("record")


def not_a_number(out):
    out.write("record", value=float("nan"))


def measure(out):
    """As an item that measures: it needs a package, and what it computes must be finite."""
    importlib.import_module("colorsys")
    out.write("record", value=1.0)
    if not math.isfinite(faults.poisoned(1.0)):
        raise FloatingPointError("what it computed is not finite")
    out.write("record", value=2.0)
