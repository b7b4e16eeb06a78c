"""The folder of a run, its files, and the models in it."""

from hybridlm.runs.averaging import average_checkpoints
from hybridlm.runs.opened import OpenedModel, open_model, save_model

__all__ = ["OpenedModel", "average_checkpoints", "open_model", "save_model"]
