"""Sweeps: the named runs of a recipe's `sweep()`, their costs and their progress.

The top-level package `launch` starts the runs.
"""

from hybridlm.sweep.expand import Sweep, SweepRun, expand
from hybridlm.sweep.plan import PlannedRun, cost_table, plan_runs, write_record
from hybridlm.sweep.progress import RunProgress, run_progress

__all__ = [
    "PlannedRun",
    "RunProgress",
    "Sweep",
    "SweepRun",
    "cost_table",
    "expand",
    "plan_runs",
    "run_progress",
    "write_record",
]
