"""Runs, models and their records as tables, figures and reports; needs no accelerator."""

from hybridlm.analysis.run import Results, Run
from hybridlm.analysis.runs import Runs
from hybridlm.runs.stored import StoredCheckpoint, open_checkpoint

__all__ = ["Results", "Run", "Runs", "StoredCheckpoint", "open_checkpoint"]
