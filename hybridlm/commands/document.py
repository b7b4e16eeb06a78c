"""Writes tables of registries into the documentation: `python -m hybridlm.commands.document`.

The tables are in docs/evals.md, docs/probes.md and docs/selection.md, between two comments. Their rows
come from the registries of tasks, probes and selectors.
"""

import pathlib
import re
from collections.abc import Iterable
from typing import Protocol

from hybridlm.distill.selection.registry import SELECTORS
from hybridlm.evals.registry import TASKS
from hybridlm.probes.registry import PROBES

PAGES = {
    "evals.md": ("task", TASKS),
    "probes.md": ("probe", PROBES),
    "selection.md": ("method", SELECTORS),
}
BEGIN, END = "<!-- made by python -m hybridlm.commands.document -->", "<!-- end -->"


class Defined(Protocol):
    """An entry of a registry, as a table shows it."""

    name: str
    help: str
    definition: str


def table(title: str, entries: Iterable[Defined]) -> str:
    """One row per entry. Entries with the same texts share a row; a repeated definition is "the same"."""
    rows: list[tuple[list[str], str, str]] = []
    for entry in entries:
        if rows and rows[-1][1:] == (entry.help, entry.definition):
            rows[-1][0].append(entry.name)
        else:
            rows.append(([entry.name], entry.help, entry.definition))
    lines = [f"| {title} | summary | definition and source |", "|---|---|---|"]
    last = ""
    for names, help, definition in rows:
        shown = ", ".join(f"`{name}`" for name in names)
        lines.append(f"| {shown} | {help} | {'the same' if definition == last else definition} |")
        last = definition
    return "\n".join(lines)


def written(page: str, name: str) -> str:
    """The text of page `name` with a new table."""
    title, entries = PAGES[name]
    made = f"{BEGIN}\n{table(title, entries.values())}\n{END}"
    return re.sub(f"{BEGIN}.*?{END}", lambda _: made, page, flags=re.DOTALL)


if __name__ == "__main__":
    for name in PAGES:
        path = pathlib.Path("docs") / name
        path.write_text(written(path.read_text(encoding="utf-8"), name), encoding="utf-8")
