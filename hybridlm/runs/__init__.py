"""The folder of a run, its files, and the models in it."""

from hybridlm.runs.opened import OpenedModel, open_model, save_model

__all__ = ["OpenedModel", "open_model", "save_model"]
