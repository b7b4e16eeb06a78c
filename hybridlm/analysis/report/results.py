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
    """Whether a folder, or one at most three levels below, holds tables (.tsv) of an experiment."""
    return not is_remote(folder) and folder.is_dir() and bool(_tables(folder))


def result_sections(folder: pathlib.Path) -> tuple[Parts, str]:
    """The report of such a folder: the parts' data, and HTML; a part for each folder with tables."""
    parts, sections = Parts(), []
    readme = folder / "README.md"
    if readme.is_file():
        text = html.escape(readme.read_text(encoding="utf-8"))
        sections.append(f"<details><summary>README.md</summary><pre>{text}</pre></details>")
    for place, files in _tables(folder).items():
        named = "" if place == folder else f"{place.relative_to(folder)}: "
        tables = [_table(parts, file) for file in files]
        drawn = "".join(_picture(file) for file in sorted(place.glob("*.svg")))
        shown = f"<div class=pictures>{drawn}</div>" if drawn else ""
        sections += [section(f"{named}figures", shown), section(f"{named}tables", *tables)]
    return parts, "\n".join(filter(None, sections))


def _tables(folder: pathlib.Path) -> dict[pathlib.Path, list[pathlib.Path]]:
    found: dict[pathlib.Path, list[pathlib.Path]] = {}
    for glob in ("*.tsv", "*/*.tsv", "*/*/*.tsv", "*/*/*/*.tsv"):
        for file in sorted(folder.glob(glob)):
            found.setdefault(file.parent, []).append(file)
    return found


def _table(parts: Parts, file: pathlib.Path) -> str:
    rows = read_tsv(file)
    left = "" if len(rows) <= _MANY else f" (the first {_MANY} of {len(rows):,} rows)"
    return parts.table(f"{file.stem}{left}", rows[:_MANY], download=rows)


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
        f"<figure><figcaption><b>{name}</b></figcaption><div class=scroll>"
        f'<img class="{kind}" alt="{name}" src="data:image/svg+xml;base64,{encoded}"></div></figure>'
    )
