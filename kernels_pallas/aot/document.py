"""The generated tables of docs/kernels.md: `python -m kernels_pallas.aot.document` rewrites them."""

import importlib
import pathlib
import re
import sys

from kernels_pallas import measured
from kernels_pallas.aot.cases import OPS

PAGE = pathlib.Path("docs/kernels.md")


def support_of(op: str):
    """The support table of an op, by its name in calls of `dispatch.resolve`."""
    folder = "linear_recurrence" if op == "gated_recurrence" else op
    return importlib.import_module(f"kernels_pallas.{folder}").SUPPORT


def support_table(op: str) -> str:
    """The table of what each kernel of an op covers, from its `SUPPORT`."""
    kernels = [backend for backend in support_of(op) if backend.impl == "pallas"]
    if not kernels:
        return f"`{op}` has no kernel: `auto` is the chunked form everywhere."
    lines = ["| feature | " + " | ".join(f"`{k.name}`" for k in kernels) + " |"]
    lines.append("|---|" + "---|" * len(kernels))
    features = dict.fromkeys(f for kernel in kernels for f in kernel.limits)
    for feature in features:
        cells = [_values(kernel.limits.get(feature, ())) for kernel in kernels]
        lines.append(f"| {feature} | " + " | ".join(cells) + " |")
    if not all(kernel.auto for kernel in kernels):
        taken = (_taken(op, kernel) for kernel in kernels)
        lines.append("| taken by `auto` | " + " | ".join(taken) + " |")
    return "\n".join(lines)


def _taken(op: str, kernel) -> str:
    if kernel.auto:
        return "yes"
    rows = measured.rows_of(op, kernel.name)
    chips = ", ".join(sorted({str(row.chip) for row in rows}))
    return f"where measured: {chips}" if rows else "no: not measured ahead of `chunked`"


def _values(values) -> str:
    if isinstance(values, range):
        step = f", multiples of {values.step}" if values.step > 1 else ""
        return f"{values[0]} to {values[-1]}{step}"
    if isinstance(values, tuple | list):
        if set(values) == {False, True}:
            return "with or without"
        return ", ".join(map(str, values)) or "not covered"
    return str(values)


def filled(page: str) -> str:
    """The page with each `<!-- support OP -->` table replaced."""
    for op in OPS:
        begin, end = f"<!-- support {op} -->", f"<!-- end of support {op} -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.S)
        table = f"{begin}\n{support_table(op)}\n{end}"
        page = pattern.sub(lambda _, table=table: table, page)
    return page


def main() -> int:
    PAGE.write_text(filled(PAGE.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
