"""Runs, models and their records as tables, figures and reports; needs no accelerator."""

from hybridlm.analysis.edits import ablate, add, patch, scale
from hybridlm.analysis.inspected import Inspected, open_model
from hybridlm.analysis.measurements import newest
from hybridlm.analysis.run import Results, Run
from hybridlm.analysis.runs import Runs
from hybridlm.runs.stored import StoredCheckpoint, open_checkpoint

__all__ = [
    "Inspected",
    "Results",
    "Run",
    "Runs",
    "StoredCheckpoint",
    "ablate",
    "add",
    "newest",
    "open_checkpoint",
    "open_model",
    "patch",
    "scale",
]
