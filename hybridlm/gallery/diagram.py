"""The block diagram of a model: its layers as a strip, and a block of each kind of layer."""

from typing import NamedTuple

from hybridlm.gallery import numbers, words
from hybridlm.gallery.drawing import Drawing, lines_of, text_width, wrap
from hybridlm.gallery.families import css_name, families
from hybridlm.gallery.sheet import LayerKind, Sheet
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.absent import NoFeedForwardConfig
from hybridlm.models.joining import BlockName
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.absent import NoMixerConfig
from hybridlm.models.mixers.parallel import ParallelConfig

MARGIN, GAP = 24, 18
STRIP = 176  # width of the column with the layers
BOX = 176  # width of a mixer or a feed-forward
TITLE, TEXT, LINE = 12.5, 10.5, 14
SQUARES = 20  # experts drawn at most
LANES = 14  # width of the residual streams of a model that has several


class Half(NamedTuple):
    """One half of a layer: the boxes side by side that read the same input, and norms around."""

    boxes: tuple["Box", ...]
    before: bool
    after: bool
    on_stream: bool = False  # the norm before it is on the residual stream itself


class Box(NamedTuple):
    """A mixer or a feed-forward: its colour, title, lines and experts (drawn, chosen, shared)."""

    kind: str
    title: str
    lines: tuple[str, ...]
    experts: tuple[int, int, bool] | None = None

    @property
    def height(self) -> float:
        return 26 + LINE * len(self.lines) + (30 if self.experts else 0)


def diagram(sheet: Sheet, *, standalone: bool = True) -> str:
    """The model as SVG; alone it has its own colours, else those of the page around it."""
    d = Drawing()
    cards = [_halves(sheet, kind) for kind in sheet.kinds]
    widths = [max(_card_width(card), 190) for card in cards]
    width = max(2 * MARGIN + STRIP + sum(widths) + GAP * len(widths), 640)
    top = _header(d, sheet, width)
    heights = [_card_height(card) + _input_height(sheet) for card in cards]
    body = max(*heights, 330.0)
    _strip(d, sheet, MARGIN, top, body)
    x = MARGIN + STRIP + GAP
    for kind, card, card_width in zip(sheet.kinds, cards, widths, strict=True):
        _card(d, sheet, kind, card, x, top, card_width, body)
        x += card_width + GAP
    bottom = _footer(d, sheet, width, top + body + 10)
    return d.svg(width, bottom + MARGIN - 10, sheet.facts.title, standalone=standalone)


def _header(d: Drawing, sheet: Sheet, width: float) -> float:
    """Title and figures; returns the y below them."""
    facts, config = sheet.facts, sheet.config
    d.text(MARGIN, 40, facts.title, 21, "bold")
    d.text(MARGIN, 60, f"{facts.developer}, {facts.released}", 12, "soft")
    figures = {
        "parameters": numbers.count(sheet.parameters),
        **({"active": numbers.count(sheet.active)} if sheet.active != sheet.parameters else {}),
        "layers": str(config.depth),
        **({"residual streams": str(config.streams.count)} if config.streams else {}),
        "width": f"{config.width:,}",
        "vocabulary": f"{config.vocab_size:,}",
        "context": f"{facts.context:,}",
        "KV per token": numbers.kib(sheet.kv_bytes_per_token),
        "cache at 128k": numbers.gib(sheet.lengths[1].cache_bytes),
    }
    x, y = MARGIN, 92
    for name, value in figures.items():
        wide = max(text_width(name, 10.5), text_width(value, 14)) + 20
        if x + wide > width - MARGIN + 20:
            x, y = MARGIN, y + 42
        d.text(x, y, value, 14, "bold")
        d.text(x, y + 15, name, 10.5, "soft")
        x += wide
    return y + 36


def _strip(d: Drawing, sheet: Sheet, x: float, y: float, height: float) -> None:
    """All layers from bottom to top between embedding and head; feed-forwards in a column beside."""
    config = sheet.config
    head = "head, tied to embedding" if config.tie_embeddings else "head"
    for text, at in ((head, y), ("final norm", y + 28), ("embedding", y + height - 22)):
        d.rect(x, at, STRIP, 22, "norm", 4)
        d.text(x + STRIP / 2, at + 15, text, 11, "", "middle")
    top, bottom = y + 64, y + height - 48
    step = min((bottom - top) / config.depth, 16)
    top = bottom - step * config.depth
    middle, wide = x + 34, STRIP - 68
    d.path((x + STRIP / 2, bottom + 26), (x + STRIP / 2, bottom + 2), arrow=True)
    d.path((x + STRIP / 2, top - 1), (x + STRIP / 2, y + 51), arrow=True)
    gap = min(1.5, step / 4)
    kinds = {kind.label: kind for kind in sheet.kinds}
    for i, label in enumerate(config.layout.labels):
        kind = kinds[label]
        at = bottom - (i + 1) * step + gap
        names = families(kind.mixer)
        if names == ("feed-forward alone",):
            names = ()
        for j, family in enumerate(names):
            part = (wide - 26) / len(names)
            d.rect(middle + j * part, at, part, step - gap, css_name(family))
        if isinstance(kind.feedforward, NoFeedForwardConfig):
            continue
        experts = words.mixture(kind.feedforward)
        d.rect(middle + wide - 23, at, 23, step - gap, "chosen" if experts else "dense")
    for at, text in ((bottom, "1"), (top + 9, str(config.depth))):
        d.text(middle - 8, at, text, 10, "soft", "end")
    d.text(x + STRIP / 2 - 8, bottom + 15, "mixers", 9.5, "soft", "end")
    d.text(x + STRIP / 2 + 8, bottom + 15, "feed-forwards", 9.5, "soft")


def _footer(d: Drawing, sheet: Sheet, width: float, y: float) -> float:
    """What the published model has beside what is drawn; returns the y below it."""
    if sheet.facts.unsupported:
        text = f"Not drawn: {'; '.join(sheet.facts.unsupported)}."
        for line in wrap(text, TEXT, width - 2 * MARGIN):
            y += LINE
            d.text(MARGIN, y, line, TEXT, "soft")
        y += 6
    return y


def _card(
    d: Drawing,
    sheet: Sheet,
    kind: LayerKind,
    halves: list[Half],
    x: float,
    y: float,
    width: float,
    height: float,
) -> None:
    """The block of one kind of layer, its input at the bottom."""
    d.rect(x, y, width, height, "tint", 8)
    names = [name for name in families(kind.mixer) if name != "feed-forward alone"] or [
        "feed-forward alone"
    ]
    for j, family in enumerate(names):
        part = (width - 24) / len(names)
        d.rect(x + 12 + j * part, y + 10, part, 4, css_name(family), 2)
    d.text(x + 12, y + 33, f"{kind.count} \u00d7", 15, "bold")
    size = numbers.count(kind.parameters)
    if kind.active != kind.parameters:
        size += f", {numbers.count(kind.active)} active"
    d.text(x + width - 12, y + 33, size, 10.5, "soft", "end")
    stream, at = x + 20, y + height - 10
    for lane in _lanes(sheet):
        d.path((stream + lane, at), (stream + lane, y + 46), arrow=True)
    body = _card_height(halves) + _input_height(sheet)
    spare = (height - body) / (len(halves) + 1)
    at -= 12 + spare
    for half in halves:
        at = _half(d, sheet, half, stream, x + 40, width - 52, at) - spare
    if sheet.config.per_layer:
        _layer_input(d, sheet.config.per_layer.size, stream, x + 40, width - 52, at + spare)


def _half(
    d: Drawing, sheet: Sheet, half: Half, stream: float, x: float, width: float, at: float
) -> float:
    """Draws a half upwards from y `at`; returns the y above it."""
    norm = words.NORMS[sheet.config.norm].split(" with")[0]
    middle = x + width / 2
    if half.on_stream:
        d.rect(stream - 12, at - 20, 76, 18, "norm", 4)
        d.text(stream + 26, at - 7.5, norm, 9.5, "", "middle")
        at -= 30
    if sheet.config.streams:
        d.rect(stream - LANES / 2 - 3, at - 4, LANES + 6, 8, "norm", 4)
    else:
        d.dot(stream, at)
    start = stream + (LANES / 2 + 3 if sheet.config.streams else 0)
    d.path((start, at), (middle, at), (middle, at - 12), arrow=True)
    at -= 12
    if half.before and not half.on_stream:
        at = _norm(d, norm, middle, at, "")
    tallest = max(box.height for box in half.boxes)
    each = (width - 10 * (len(half.boxes) - 1)) / len(half.boxes)
    for j, box in enumerate(half.boxes):
        left = x + j * (each + 10)
        if len(half.boxes) > 1:
            inside, centre = at - tallest, left + each / 2
            d.path((middle, at), (centre, at), (centre, at - 12), arrow=True)
            d.path((centre, inside - 12), (centre, inside - 24), (middle, inside - 24))
            _box(d, box, left, at - 12 - tallest, each, tallest)
        else:
            _box(d, box, left, at - box.height, each, box.height)
    at -= tallest + (24 if len(half.boxes) > 1 else 0)
    if half.after:
        d.path((middle, at), (middle, at - 12), arrow=True)
        at = _norm(d, norm, middle, at - 12, "end")
    d.path((middle, at), (middle, at - 14), (stream + 8, at - 14), arrow=True)
    d.plus(stream, at - 14)
    return at - 36


def _lanes(sheet: Sheet) -> list[float]:
    """The streams' distances from the middle of their column."""
    streams = sheet.config.streams
    count = streams.count if streams else 1
    step = LANES / max(count - 1, 1)
    return [(i - (count - 1) / 2) * step for i in range(count)]


def _input_height(sheet: Sheet) -> float:
    return 0 if sheet.config.per_layer is None else 40


def _layer_input(d: Drawing, size: int, stream: float, x: float, width: float, at: float) -> None:
    """The vector of the token that the layer adds after its halves, gated."""
    d.rect(x, at - 22, width, 22, "norm", 4)
    d.text(x + width / 2, at - 7, f"gate, vector of {size} of the token", 10, "", "middle")
    d.path((x, at - 11), (stream + 8, at - 11), arrow=True)
    d.plus(stream, at - 11)


def _norm(d: Drawing, name: str, middle: float, at: float, where: str) -> float:
    d.rect(middle - 50, at - 18, 100, 18, "norm", 4)
    d.text(middle, at - 5.5, name, 10, "", "middle")
    if where != "end":
        d.path((middle, at - 18), (middle, at - 30), arrow=True)
        return at - 30
    return at - 18


def _box(d: Drawing, box: Box, x: float, y: float, width: float, height: float) -> None:
    d.rect(x, y, width, height, box.kind, 6)
    d.text(x + 10, y + 18, box.title[0].upper() + box.title[1:], TITLE, "bold")
    for i, line in enumerate(box.lines):
        d.text(x + 10, y + 34 + i * LINE, line, TEXT)
    if box.experts is None:
        return
    drawn, chosen, shared = box.experts
    size = 11
    across = SQUARES // 2
    top = y + 26 + LINE * len(box.lines)
    for i in range(drawn):
        cell = x + 10 + (i % across) * (size + 2.5), top + (i // across) * (size + 2.5)
        d.rect(*cell, size, size, "expert chosen" if i < chosen else "expert", 2)
    if shared:
        d.rect(x + 10 + across * (size + 2.5) + 5, top, size, size, "shared", 2)


def _halves(sheet: Sheet, kind: LayerKind) -> list[Half]:
    """The halves of a layer from bottom to top."""
    config = sheet.config
    layer = next(x for x in config.layout.layers if x.label == kind.label)
    norms: BlockName = config.block_of(layer).norms
    before = norms != "postnorm"
    after = norms in ("postnorm", "sandwich", "scaled_sandwich")
    mixers = () if isinstance(kind.mixer, NoMixerConfig) else _mixer_boxes(kind.mixer, config.width)
    if more := words.beside(sheet, kind):
        lines = _wrapped([more.removeprefix(", ")])
        mixers = tuple(box._replace(lines=box.lines + lines) for box in mixers)
    feed = (
        ()
        if isinstance(kind.feedforward, NoFeedForwardConfig)
        else (_feedforward_box(kind.feedforward),)
    )
    groups = [mixers + feed] if norms == "parallel" else [mixers, feed]
    return [Half(boxes, before, after, norms == "normed") for boxes in groups if boxes]


def _mixer_boxes(mixer: MixerConfig, width: int) -> tuple[Box, ...]:
    if isinstance(mixer, ParallelConfig):
        return tuple(b for branch in mixer.branches.values() for b in _mixer_boxes(branch, width))
    (family,) = families(mixer)
    title, *phrases = words.long(mixer, width).split(", ")
    return (Box(f"box {css_name(family)}", title, _wrapped(phrases)),)


def _feedforward_box(config: FeedForwardConfig) -> Box:
    title, *phrases = words.feedforward(config).split(", ")
    experts = None
    if mixture := words.mixture(config):
        drawn = min(mixture.experts, SQUARES)
        chosen = max(1, round(drawn * mixture.top_k / mixture.experts))
        experts = (drawn, chosen, mixture.shared_hidden is not None or mixture is not config)
    return Box("feed", title, _wrapped(phrases), experts)


def _wrapped(phrases: list[str]) -> tuple[str, ...]:
    return tuple(lines_of(phrases, TEXT, BOX - 18)) if phrases else ()


def _card_width(halves: list[Half]) -> float:
    most = max(len(half.boxes) for half in halves)
    return 52 + most * BOX + 10 * (most - 1)


def _card_height(halves: list[Half]) -> float:
    return 54 + sum(
        max(box.height for box in half.boxes)
        + (24 if len(half.boxes) > 1 else 0)
        + (30 if half.before else 0)
        + (30 if half.after else 0)
        + 62
        for half in halves
    )
