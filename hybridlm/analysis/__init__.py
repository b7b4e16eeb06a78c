"""Runs, models and their records as tables, figures and reports; needs no accelerator."""

from hybridlm.analysis.run import Run
from hybridlm.analysis.runs import Runs
from hybridlm.runs.stored import StoredCheckpoint, open_checkpoint

__all__ = ["Run", "Runs", "StoredCheckpoint", "open_checkpoint"]
