"""Sweeps: from a recipe's `sweep()` to named runs, what each would cost, and how far each is.

Who starts the runs is not known here: that is the business of the top-level package `launch`.
"""

from hybridlm.sweep.expand import Run, Sweep, expand
from hybridlm.sweep.plan import Planned, describe, plan, record
from hybridlm.sweep.progress import RunProgress, progress

__all__ = [
    "Planned",
    "Run",
    "RunProgress",
    "Sweep",
    "describe",
    "expand",
    "plan",
    "progress",
    "record",
]
