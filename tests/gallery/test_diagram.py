"""Diagrams show every layer, half and expert of the config, and their text stays in its place."""

import collections
import re
import xml.etree.ElementTree as ET

import pytest

from hybridlm import gallery
from hybridlm.gallery.diagram import diagram
from hybridlm.gallery.drawing import text_width, wrap
from hybridlm.gallery.families import COLORS, css_name, families
from hybridlm.models.feedforward.absent import NoFeedForwardConfig
from hybridlm.models.feedforward.beside import BesideConfig
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.models.mixers.absent import NoMixerConfig
from tests.gallery.sheets import ROOT, diagram_of, sheet_of

pytestmark = pytest.mark.xdist_group("gallery")  # they share the sheets

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(params=gallery.names(ROOT / "configs" / "gallery"))
def name(request):
    return request.param


def rectangles(svg: str) -> collections.Counter[frozenset[str]]:
    """How many rectangles have each set of classes."""
    found = ET.fromstring(svg).iter(f"{SVG}rect")
    return collections.Counter(frozenset(r.get("class", "").split()) for r in found)


def test_the_strip_has_every_layer(name):
    """A rectangle for each branch of each mixer, and one for each feed-forward."""
    sheet = sheet_of(name)
    drawn = rectangles(diagram_of(name))
    for family in set(COLORS) - {"feed-forward alone"}:
        layers = sum(k.count * families(k.mixer).count(family) for k in sheet.kinds)
        in_cards = sum(families(k.mixer).count(family) for k in sheet.kinds)
        assert drawn[frozenset({css_name(family)})] == layers + in_cards
        assert drawn[frozenset({"box", css_name(family)})] == in_cards
    experts = sum(
        k.count for k in sheet.kinds if isinstance(k.feedforward, MoEConfig | BesideConfig)
    )
    none = sum(k.count for k in sheet.kinds if isinstance(k.feedforward, NoFeedForwardConfig))
    assert drawn[frozenset({"chosen"})] == experts
    assert drawn[frozenset({"dense"})] == sheet.config.depth - experts - none


def test_every_half_is_added_to_the_stream(name):
    """One circle with a plus each; a block whose halves run in parallel has one.

    Per-layer inputs have one more.
    """
    sheet = sheet_of(name)
    halves = sum(
        1
        if sheet.config.block == "parallel"
        else (not isinstance(k.mixer, NoMixerConfig))
        + (not isinstance(k.feedforward, NoFeedForwardConfig))
        for k in sheet.kinds
    )
    inputs = len(sheet.kinds) if sheet.config.per_layer else 0
    circles = ET.fromstring(diagram_of(name)).iter(f"{SVG}circle")
    assert sum(circle.get("class") == "norm" for circle in circles) == halves + inputs


def test_every_residual_stream_is_drawn(name):
    """Lines from the bottom to the top of each kind of layer."""
    sheet = sheet_of(name)
    root = ET.fromstring(diagram_of(name))
    cards = [r for r in root.iter(f"{SVG}rect") if r.get("class") == "tint"]
    ends = [
        [float(n) for point in path.get("d")[1:].split(" L") for n in point.split()]
        for path in root.iter(f"{SVG}path")
    ]
    tall = float(cards[0].get("height")) - 60
    lines = [e for e in ends if len(e) == 4 and e[0] == e[2] and e[1] - e[3] > tall]
    streams = sheet.config.streams.count if sheet.config.streams else 1
    assert len(cards) == len(sheet.kinds)
    assert len(lines) == streams * len(cards)


def test_text_stays_inside_its_box_and_the_picture(name):
    root = ET.fromstring(diagram_of(name))
    width, height = map(float, root.get("viewBox").split()[2:])
    boxes = [
        [float(r.get(k)) for k in ("x", "y", "width", "height")]
        for r in root.iter(f"{SVG}rect")
        if r.get("class", "").startswith(("box", "feed", "norm", "tint"))
    ]
    for text in root.iter(f"{SVG}text"):
        x, y, size = (float(text.get(k)) for k in ("x", "y", "font-size"))
        wide = text_width(text.text, size)
        left = x - {"middle": wide / 2, "end": wide}.get(text.get("text-anchor"), 0)
        assert 0 <= left and left + wide <= width and size <= y <= height, text.text
        around = [b for b in boxes if b[0] <= x <= b[0] + b[2] and b[1] < y < b[1] + b[3]]
        for bx, _, bw, _ in around:
            assert bx <= left and left + wide <= bx + bw, text.text


def test_a_drawing_for_a_page_has_no_colours_of_its_own():
    sheet = sheet_of("kimi_linear_48b_a3b")
    assert "prefers-color-scheme: dark" in diagram(sheet)
    inside = diagram(sheet, standalone=False)
    assert "<style" not in inside and not re.search(r"#[0-9a-f]{6}", inside)


def test_what_is_not_drawn_is_said():
    svg = diagram_of("zamba2_2_7b")
    assert "Not drawn: two blocks of attention and feed-forward" in svg


def test_wrapped_lines_fit_and_lose_nothing():
    text = "heads of 128, window 1,024, a_word_that_is_longer_than_any_line, RoPE"
    lines = wrap(text, 10, 80)
    assert " ".join(lines) == text
    assert all(text_width(line, 10) <= 80 for line in lines if " " in line)
