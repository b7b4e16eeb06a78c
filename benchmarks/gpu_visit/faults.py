"""Planted faults, to rehearse a visit: what a broken kernel, compiler or machine would do.

A fault is written KIND or KIND@N, N being the number of records after which it strikes (0: at once):
`raise`, `hang`, `segv` (as an illegal access does, the process dies), `exit` (it ends without a word),
`nan` (what the item computes becomes NaN), `missing:PACKAGE` (it cannot be imported).
"""

import ctypes
import importlib.abc
import math
import os
import signal
import sys
import time
from typing import Any

KINDS = ("raise", "hang", "segv", "exit", "nan", "missing")
_planted: tuple[str, int] = ("", 0)


class _Missing(importlib.abc.MetaPathFinder):
    def __init__(self, package: str):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r} (planted)", name=name)
        return None


def plant(fault: str | None) -> None:
    """Sets this process's fault.

    Raises:
      ValueError: for an unknown kind.
    """
    global _planted
    if not fault:
        return
    kind, _, count = fault.partition("@")
    name, _, package = kind.partition(":")
    if name not in KINDS:
        raise ValueError(f"{fault!r} is no fault; the kinds are {', '.join(KINDS)}.")
    if name == "missing":
        for loaded in [m for m in sys.modules if m.partition(".")[0] == package]:
            del sys.modules[loaded]
        sys.meta_path.insert(0, _Missing(package))
    _planted = (name, int(count or 0))
    strike(0)


def strike(records: int) -> None:
    """Called after every record."""
    kind, after = _planted
    if records != after:
        return
    if kind == "raise":
        raise RuntimeError("a planted fault")
    if kind == "hang":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        time.sleep(1e6)
    if kind == "segv":
        ctypes.string_at(0)
    if kind == "exit":
        os._exit(9)


def poisoned(tree: Any) -> Any:
    """NaN in place of a float, or of all numbers of a pytree of arrays, if the fault says so, otherwise the
    tree."""
    if _planted[0] != "nan":
        return tree
    if isinstance(tree, float):
        return math.nan
    import jax

    return jax.tree.map(lambda x: x * float("nan"), tree)
