"""The style of all figures: for a page of a paper, and for a screen in light and dark.

A figure is vector graphics, on a transparent ground in PDF files and HTML pages. Its size is that of
a column of text, so that its labels stay legible where it is printed or shown on a phone. In an SVG
file or an HTML page, `RULES` give ink and lines the colours of the reader's scheme; other programs
show the light ones.
"""

import functools
import io
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import matplotlib.figure
from matplotlib.axes import Axes

from hybridlm.errors import UserError
from hybridlm.pages.scheme import DARK, DARK_PALETTE, LIGHT, PALETTE
from hybridlm.storage import open_path
from hybridlm.storage.writing import write_bytes

INK, SOFT, FAINT, GRID = LIGHT["ink"], LIGHT["soft"], "#b8b8b8", "#e8e8e8"
WIDTH = 4.8  # inches, of a figure: 461 pixels
MAP = "cividis"  # of shares; its colours are told apart by colour-blind readers, and in grey

STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlecolor": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "hybridlm",
    "pdf.fonttype": 42,
}

#: Colours in the dark scheme by those of the light one.
_DARK = {
    INK: DARK["ink"],
    SOFT: DARK["soft"],
    FAINT: "#5c646e",
    GRID: "#2c3138",
    **dict(zip(PALETTE, DARK_PALETTE, strict=True)),
}


def _rules(start: str) -> str:
    return "\n".join(
        f'{start} svg.figure [style*="{kind}: {light}"] {{ {kind}: {dark} !important; }}'
        for light, dark in _DARK.items()
        for kind in ("fill", "stroke")
    )


#: Rules of a style sheet that give figures inside a page the colours of its scheme.
RULES = (
    "@media (prefers-color-scheme: dark) {\n"
    + _rules(':root:not([data-scheme="light"])')
    + "\n}\n"
    + _rules(':root[data-scheme="dark"]')
)
_ALONE = (
    "@media (prefers-color-scheme: dark) {\n"
    + _rules("").replace(" svg.figure", "")
    + f"\n.ground {{ fill: {DARK['ground']}; }}\n}}"
)


def styled[**P, R](make: Callable[P, R]) -> Callable[P, R]:
    """A function that makes a figure in this style, whatever matplotlib's settings are."""

    @functools.wraps(make)
    def inside(*args: P.args, **named: P.kwargs) -> R:
        with matplotlib.rc_context(STYLE):
            return make(*args, **named)

    return inside


class Figure(matplotlib.figure.Figure):
    """A figure that a notebook shows as vector graphics, without a magic command."""

    def _repr_svg_(self) -> str:
        return to_svg(self)


def axes_of(width: float = WIDTH, height: float = 3.0) -> tuple[Figure, Axes]:
    """A figure of this size in inches with one pair of axes; call it in a function that is `styled`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


@styled
def plain_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """`axes_of` for figures elsewhere."""
    return axes_of(width, height)


def to_svg(figure: Figure, *, alone: bool = True) -> str:
    """The figure as an SVG element with text elements; the same figure gives the same bits.

    Args:
      alone: for a file: with the rules of the dark scheme and a ground of its own, because the page
        around it may have another scheme than the reader's system. A page has `RULES`.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        metadata = {"Date": None, "Creator": None}
        figure.savefig(buffer, format="svg", metadata=metadata, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace("<svg ", '<svg class="figure" ', 1)
    if alone:
        head = text.index(">") + 1
        ground = f'<rect class="ground" width="100%" height="100%" fill="{LIGHT["ground"]}"/>'
        text = f"{text[:head]}<style>{_ALONE}</style>{ground}{text[head:]}"
    return text


def save(figure: Figure, path: pathlib.Path | str) -> None:
    """Writes a figure as `.svg` or `.pdf`, here or to a bucket.

    Raises:
      UserError: for another ending. WriteError: if it cannot be written.
    """
    kind = str(path).rpartition(".")[2]
    if kind not in ("svg", "pdf"):
        raise UserError(f"{path}: figures are written as .svg or .pdf, which are vector graphics")
    if kind == "svg":
        data = to_svg(figure).encode()
    else:
        buffer = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(buffer, format="pdf", metadata={"CreationDate": None}, transparent=True)
        data = buffer.getvalue()
    write_bytes(open_path(path), data)


def color(number: int) -> str:
    """The colour of a line or area, by its number."""
    return PALETTE[number % len(PALETTE)]


def token_label(x: float, _: Any = None) -> str:
    """A number of tokens as an axis label: 4k, 1M. The second argument is matplotlib's index."""
    return f"{x / 2**20:g}M" if x >= 2**20 else f"{x / 1024:g}k" if x >= 1024 else f"{x:g}"


def short(x: float, _: Any = None) -> str:
    """A number as an axis label, with a metric prefix: 15k, 2.5M, 40G."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:.4g}{unit}"
    return f"{x:.4g}"


def finite(value: Any) -> bool:
    """Whether a value is a number, and neither NaN nor infinite."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def distinct(values: Sequence[Any]) -> list[Any]:
    """Without repetition: numbers by size, else in the order of appearance."""
    found = list(dict.fromkeys(values))
    return sorted(found) if all(map(finite, found)) else found


def legend(figure: Figure, axes: Axes) -> None:
    """A legend above the axes, if there is more than one line; as many columns as there is room for."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        fit = int(figure.get_figwidth() * 13.5 // (max(map(len, labels)) + 6))
        columns = max(1, min(fit, len(labels), 4))
        size = 9.5 if len(labels) <= 12 else 8.5
        place: Any = dict(loc="outside upper center", ncols=columns, fontsize=size)
        figure.legend(handles, labels, columnspacing=1.2, handlelength=1.5, **place)
