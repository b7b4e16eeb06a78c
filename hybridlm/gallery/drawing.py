"""Shapes and text of SVG drawings that follow the reader's light or dark scheme."""

import math
from collections.abc import Sequence
from html import escape
from typing import Literal

from hybridlm.gallery.families import COLORS, css_name
from hybridlm.pages import DARK, LIGHT, scheme

#: Rules of elements; the colours come from custom properties of an element above them.
RULES = """
svg.drawing text { fill: var(--ink);
  font-family: system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
svg.drawing .soft { fill: var(--soft); }
svg.drawing .bold { font-weight: 600; }
svg.drawing .wire { stroke: var(--soft); fill: none; stroke-width: 1.4; }
svg.drawing .grid { stroke: var(--line); fill: none; stroke-width: 1; }
svg.drawing .head { fill: var(--soft); }
svg.drawing .tint { fill: var(--tint); }
svg.drawing .norm { fill: var(--ground); stroke: var(--soft); }
svg.drawing .dense { fill: var(--line); }
svg.drawing .feed { fill: var(--tint); stroke: var(--soft); }
svg.drawing .expert { fill: none; stroke: var(--soft); stroke-width: .8; }
svg.drawing .chosen { fill: var(--soft); }
svg.drawing .shared { fill: var(--ink); }
svg.drawing .page { fill: var(--ground); }
""" + "\n".join(
    f"svg.drawing .{css_name(family)} {{ fill: {color}; }}\n"
    f"svg.drawing .box.{css_name(family)} {{ fill-opacity: .16; stroke: {color}; stroke-width: 1.4; }}"
    for family, color in COLORS.items()
)


STANDALONE = (
    f"svg.drawing {{ {scheme(LIGHT)} }}\n"
    f"@media (prefers-color-scheme: dark) {{ svg.drawing {{ {scheme(DARK)} }} }}\n{RULES}"
)

_NARROW, _WIDE = set("iljt.,:;'|!()[]fr I-"), set("mwMW@%")


def text_width(text: str, size: float) -> float:
    """The width of a text in a wide sans-serif font, in the unit of `size`; others are narrower."""
    width = sum(
        0.34 if c in _NARROW else 0.95 if c in _WIDE else 0.7 if c.isupper() else 0.61 for c in text
    )
    return width * size


def wrap(text: str, size: float, width: float) -> list[str]:
    """Lines no wider than `width`, broken at spaces; a single longer word stays whole."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


class Drawing:
    """Elements of an SVG picture, and the lowest point that they reach.

    Coordinates are pixels; y grows downward.
    """

    def __init__(self):
        self.elements: list[str] = []

    def rect(
        self, x: float, y: float, width: float, height: float, kind: str, radius: float = 0
    ) -> None:
        """A rectangle of the classes `kind`."""
        corner = f' rx="{radius:g}"' if radius else ""
        self.elements.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"{corner} class="{kind}"/>'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 12,
        kind: str = "",
        anchor: Literal["start", "middle", "end"] = "start",
    ) -> None:
        """A line of text; y is its baseline."""
        classes = f' class="{kind}"' if kind else ""
        side = "" if anchor == "start" else f' text-anchor="{anchor}"'
        self.elements.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}"{side}{classes}>{escape(text)}</text>'
        )

    def path(self, *points: tuple[float, float], arrow: bool = False, kind: str = "wire") -> None:
        """A line through points, with an arrow head at the last one on demand."""
        steps = " L".join(f"{x:g} {y:g}" for x, y in points)
        self.elements.append(f'<path d="M{steps}" class="{kind}"/>')
        if arrow:
            (x0, y0), (x1, y1) = points[-2:]
            long = math.hypot(x1 - x0, y1 - y0) or 1
            dx, dy = (x1 - x0) / long, (y1 - y0) / long
            corners = (
                (x1, y1),
                (x1 - 6 * dx - 3.4 * dy, y1 - 6 * dy + 3.4 * dx),
                (x1 - 6 * dx + 3.4 * dy, y1 - 6 * dy - 3.4 * dx),
            )
            outline = " ".join(f"{x:.4g},{y:.4g}" for x, y in corners)
            self.elements.append(f'<polygon points="{outline}" class="head"/>')

    def plus(self, x: float, y: float) -> None:
        """A circle with a plus: where a half of a layer is added to the residual stream."""
        self.elements.append(f'<circle cx="{x:g}" cy="{y:g}" r="7" class="norm"/>')
        self.path((x - 3.6, y), (x + 3.6, y))
        self.path((x, y - 3.6), (x, y + 3.6))

    def dot(self, x: float, y: float) -> None:
        """A point where a line branches."""
        self.elements.append(f'<circle cx="{x:g}" cy="{y:g}" r="2.4" class="head"/>')

    def svg(self, width: float, height: float, title: str, *, standalone: bool = True) -> str:
        """The picture; alone it has its own colours, else those of the page around it."""
        style = f"<style>{STANDALONE}</style>" if standalone else ""
        ground = '<rect width="100%" height="100%" class="page"/>' if standalone else ""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="drawing" role="img"'
            f' viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}">'
            f"<title>{escape(title)}</title>{style}{ground}{''.join(self.elements)}</svg>"
        )


def lines_of(phrases: Sequence[str], size: float, width: float) -> list[str]:
    """Phrases as lines: as many a line, separated by commas, as fit; a longer phrase is wrapped."""
    lines: list[str] = []
    for phrase in phrases:
        if lines and text_width(f"{lines[-1]}, {phrase}", size) <= width:
            lines[-1] += f", {phrase}"
        else:
            lines += wrap(phrase, size, width)
    return lines
