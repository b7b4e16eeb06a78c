"""The naive forms of flash-linear-attention, loaded by path: its packages import triton."""

import importlib.util
import pathlib
from types import ModuleType

FOLDER: pathlib.Path  # where fla-core's files lie; set by write.py
VERSION = "fla-core 0.6.0"


def load(op: str) -> ModuleType:
    """The module fla/ops/<op>/naive.py."""
    path = FOLDER / "fla" / "ops" / op / "naive.py"
    spec = importlib.util.spec_from_file_location(f"naive_{op.replace('/', '_')}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
