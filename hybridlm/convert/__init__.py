"""Checkpoints of transformers and GGUF files: read as models here, and written from them."""

from hybridlm.convert.exporting import export
from hybridlm.convert.importing import Checkpoint, LazyArray, is_checkpoint, open_checkpoint

__all__ = ["Checkpoint", "LazyArray", "export", "is_checkpoint", "open_checkpoint"]
