"""All calls of the scorecard: the cases of the op folders, and rivals from other projects."""

import importlib
import importlib.util

from kernels_pallas.aot.case import Case
from kernels_pallas.aot.chips import CHIPS

#: Op folders that have `CASES` in a module `cases`.
OPS = ("attention", "causal_conv", "linear_recurrence", "gated_linear", "delta_rule", "gated_slots")


def by_name() -> dict[str, Case]:
    """The cases that can be compiled here; rivals need the packages they come from."""
    names = [f"kernels_pallas.{op}.cases" for op in OPS] + ["kernels_pallas.aot.rivals"]
    modules = [importlib.import_module(n) for n in names if importlib.util.find_spec(n)]
    return {case.name: case for module in modules for case in module.CASES}


def ours() -> list[tuple[str, str]]:
    """(name, chip) for all compilations of this project's kernels."""
    return [
        (name, chip)
        for name, case in by_name().items()
        if case.rival_of is None
        for chip in CHIPS
        if CHIPS[chip].platform in case.platforms
    ]
