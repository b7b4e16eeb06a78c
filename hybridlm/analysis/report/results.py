"""The sections of the report of an experiment's results: its tables and figures as they are."""

import base64
import csv
import html
import pathlib
from typing import Any

from hybridlm.analysis.report.parts import Parts, section
from hybridlm.analysis.tables import Record
from hybridlm.storage import is_remote

_MANY = 400  # rows of a table that are shown; the download has all


def is_results(folder: pathlib.Path) -> bool:
    """Whether a folder holds tables (.tsv) of an experiment."""
    return not is_remote(folder) and folder.is_dir() and any(folder.glob("*.tsv"))


def result_sections(folder: pathlib.Path) -> tuple[Parts, str]:
    """The report of such a folder: the parts' data, and HTML."""
    parts, tables = Parts(), []
    for file in sorted(folder.glob("*.tsv")):
        rows = read_tsv(file)
        left = "" if len(rows) <= _MANY else f" (the first {_MANY} of {len(rows):,} rows)"
        tables.append(parts.table(f"{file.stem}{left}", rows[:_MANY], download=rows))
    drawn = "".join(_picture(file) for file in sorted(folder.glob("*.svg")))
    shown = f"<div class=figures>{drawn}</div>" if drawn else ""
    return parts, section("Figures", shown) + section("Tables", *tables)


def read_tsv(file: pathlib.Path) -> list[Record]:
    """The rows of a table, with numbers where a column holds nothing else."""
    with file.open(encoding="utf-8", newline="") as opened:
        rows: list[Record] = list(csv.DictReader(opened, delimiter="\t"))
    for key in rows[0] if rows else ():
        values = [_number(row[key]) for row in rows]
        if all(value is not None or row[key] in ("", None) for value, row in zip(values, rows)):
            for row, value in zip(rows, values):
                row[key] = value
    return rows


def _number(text: Any) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except (TypeError, ValueError):
            continue
    return None


def _picture(file: pathlib.Path) -> str:
    """A figure as a picture, in which nothing runs; on white, if it knows no dark scheme."""
    data = file.read_bytes()
    kind = "figure" if b"prefers-color-scheme" in data else "figure paper"
    encoded = base64.b64encode(data).decode()
    name = html.escape(file.stem)
    return (
        f"<figure><figcaption><b>{name}</b></figcaption>"
        f'<img class="{kind}" alt="{name}" src="data:image/svg+xml;base64,{encoded}"></figure>'
    )
