"""What the sections of a report are made of: tables, figures with the code that makes them."""

import csv
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from hybridlm.analysis.figures import to_svg
from hybridlm.analysis.figures.style import finite
from hybridlm.analysis.report.attention import AttentionText
from hybridlm.analysis.tables import Record


class Parts:
    """HTML of a page's parts, and the data that its script needs for them.

    Attributes:
      csv: text of each table for download, by the id of the figure or table; of one that another
        has too, a list of that other id.
      views: of attention over text.
    """

    def __init__(self):
        self.csv: dict[str, str | list[str]] = {}
        self._named: dict[str, str] = {}
        self.views: list[dict[str, Any]] = []
        self._count = 0

    @property
    def data(self) -> dict[str, Any]:
        """For the page's script."""
        return {"csv": self.csv, "views": self.views}

    def figure(
        self,
        title: str,
        figure: Figure,
        made_by: str,
        rows: Sequence[Record] = (),
        note: str = "",
    ) -> str:
        """A figure with its title, the code or command that makes it, and its downloads.

        Args:
          made_by: Python or a command.
          rows: what is drawn, for CSV.
        """
        name = self._name(title)
        buttons = [f'<button type="button" data-svg="{name}">SVG</button>']
        if rows:
            self._keep(name, rows)
            buttons.append(f'<button type="button" data-csv="{name}">CSV</button>')
        note = f"<p class=note>{html.escape(note)}</p>" if note else ""
        return (
            f'<figure id="{name}"><figcaption><b>{html.escape(title)}</b>'
            f"<span class=tools>{''.join(buttons)}</span></figcaption>"
            f"<div class=scroll>{to_svg(figure, alone=False)}</div>{note}"
            f"<pre class=made>{html.escape(made_by)}</pre></figure>"
        )

    def table(
        self,
        title: str,
        rows: Sequence[Record],
        columns: Mapping[str, str] | None = None,
        *,
        marked: Callable[[Record, str], bool] = lambda row, key: False,
        shown: Mapping[str, Callable[[Any], str]] = {},
        download: Sequence[Record] | None = None,
    ) -> str:
        """A sortable table of records, with a download.

        Args:
          columns: heading by key; all keys under their own names by default.
          marked: whether a cell is highlighted.
          shown: how the values of a column are written.
          download: the rows of the CSV, if there are more than those that are shown.
        """
        name = self._name(title)
        self._keep(name, rows if download is None else download)
        keys = dict.fromkeys(key for row in rows for key in row)
        columns = {key: key for key in keys} if columns is None else columns
        numeric = {k: all(_blank(r.get(k)) or _number(r.get(k)) for r in rows) for k in columns}
        head = "".join(
            f"<th{' class=number' if numeric[key] else ''} scope=col>{html.escape(text)}</th>"
            for key, text in columns.items()
        )
        body = "".join(
            "<tr>"
            + "".join(
                _cell(row.get(key), numeric[key], marked(row, key), shown.get(key, text_of))
                for key in columns
            )
            + "</tr>"
            for row in rows
        )
        return (
            f'<section class=table id="{name}"><div class=tools><b>{html.escape(title)}</b>'
            f'<button type="button" data-csv="{name}">CSV</button></div><div class=scroll>'
            f"<table class=sortable><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            "</div></section>"
        )

    def view(self, text: AttentionText) -> str:
        """A view of attention over text, which the script builds."""
        self.views.append({"tokens": list(text.tokens), "maps": text.packed()})
        head = f"<figcaption><b>{html.escape(text.title)}</b></figcaption>"
        return f'<figure class=attention data-view="{len(self.views) - 1}">{head}</figure>'

    def _keep(self, name: str, rows: Sequence[Record]) -> None:
        text = to_csv(rows)
        first = self._named.setdefault(text, name)
        self.csv[name] = text if first == name else [first]

    def _name(self, title: str) -> str:
        self._count += 1
        slug = "".join(c if c.isalnum() else "-" for c in title.lower()).strip("-")
        return f"{slug}-{self._count}"


def plain_table(head: list[str], rows: list[list[Any]], numbers_from: int) -> str:
    """A table in the order of its rows, with the columns after `numbers_from` to the right."""

    def cells(row: list[Any], tag: str) -> str:
        kinds = ["" if i < numbers_from else " class=number" for i in range(len(row))]
        return "".join(f"<{tag}{k}>{html.escape(str(v))}</{tag}>" for v, k in zip(row, kinds))

    top = f"<thead><tr>{cells(head, 'th')}</tr></thead>" if head else ""
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f"<div class=scroll><table>{top}<tbody>{body}</tbody></table></div>"


def cards(found: Iterable[tuple[str, str]]) -> str:
    """Figures at a glance: (value, what it is)."""
    shown = "".join(
        f"<div><b>{html.escape(value)}</b><span>{html.escape(meaning)}</span></div>"
        for value, meaning in found
    )
    return f"<div class=cards>{shown}</div>" if shown else ""


def section(title: str, *parts: str) -> str:
    """A section under a heading; nothing without content."""
    body = "".join(parts)
    return f"<h2>{html.escape(title)}</h2>{body}" if body else ""


def grid(*figures: str) -> str:
    """Figures side by side where there is room."""
    return f"<div class=figures>{''.join(figures)}</div>" if any(figures) else ""


def to_csv(rows: Iterable[Record]) -> str:
    """Records as CSV: a header, and an empty field for what is missing."""
    rows = list(rows)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, keys, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def text_of(value: Any) -> str:
    """A value in a cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not finite(value):
            return "NaN" if value != value else f"{value}"
        small = value == 0 or 1e-3 <= abs(value) < 1e6
        return f"{value:,.4f}".rstrip("0").rstrip(".") if small else f"{value:.4g}"
    return str(value)


def bytes_text(count: float) -> str:
    """A number of bytes: 12 KiB."""
    if count == 0:
        return "0"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"


def count_text(count: float) -> str:
    """A number with its size in words: 1.23 M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:g}"


def _cell(value: Any, number: bool, marked: bool, shown: Callable[[Any], str]) -> str:
    kinds = " ".join(["number"] * number + ["marked"] * marked)
    order = f' data-value="{value!r}"' if _number(value) and finite(value) else ""
    kind = f' class="{kinds}"' if kinds else ""
    return f"<td{kind}{order}>{html.escape(shown(value))}</td>"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _blank(value: Any) -> bool:
    return value is None or value == ""
