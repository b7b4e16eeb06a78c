"""Layer patterns: "swa full", "gdn*3 full", "ssd+none none+mlp" -> prefix, repeating unit, suffix."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from hybridlm.settings.reader import nearest, require

MAX_LAYERS = 10_000  # a larger number is a slip, and would be laid out name by name
NONE = "none"  # in a pattern: the layer has no mixer, or no feed-forward
_NAME = "[A-Za-z_][A-Za-z0-9_]*"
_TERM = re.compile(rf"^(?P<mixer>{_NAME})(\+(?P<feedforward>{_NAME}))?(\*(?P<times>[0-9]+))?$")


class Layer(NamedTuple):
    """One item of a pattern.

    Attributes:
      mixer: its name in `model.mixers`, or "none".
      feedforward: its name in `model.feedforwards`, or "none"; None is `model.mlp`.
    """

    mixer: str
    feedforward: str | None = None

    @property
    def label(self) -> str:
        """As the pattern writes it."""
        return self.mixer if self.feedforward is None else f"{self.mixer}+{self.feedforward}"


class Layout(NamedTuple):
    """Layers by where they stand: `unit` is repeated `repeats` times by one scan."""

    prefix: tuple[Layer, ...]
    unit: tuple[Layer, ...]
    repeats: int
    suffix: tuple[Layer, ...]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, bottom to top."""
        return self.prefix + self.unit * self.repeats + self.suffix

    @property
    def names(self) -> tuple[str, ...]:
        """The mixer's name of each layer, bottom to top."""
        return tuple(layer.mixer for layer in self.layers)

    @property
    def labels(self) -> tuple[str, ...]:
        """Each layer as the pattern writes it, bottom to top."""
        return tuple(layer.label for layer in self.layers)


def parse(
    pattern: str,
    depth: int,
    prefix: str,
    suffix: str,
    mixers: Iterable[str],
    feedforwards: Iterable[str] = (),
) -> Layout:
    """Lays a pattern out over `depth` layers.

    The unit is repeated as often as it fits between prefix and suffix; if layers remain, the
    unit's first ones are laid out once more below the suffix.

    Raises:
      Invalid: for a malformed term, a mixer or feed-forward that is not defined, or a prefix and
        suffix that leave too few layers.
    """
    defined = (tuple(mixers), tuple(feedforwards))
    before = _terms(prefix, "prefix", *defined)
    unit = _terms(pattern, "pattern", *defined)
    after = _terms(suffix, "suffix", *defined)
    require(bool(unit), "pattern", "is empty")
    remaining = depth - len(before) - len(after)
    require(
        remaining >= 0,
        "depth",
        f"is {depth}, but prefix and suffix have {len(before) + len(after)} layers",
    )
    repeats, rest = divmod(remaining, len(unit))
    return Layout(before, unit, repeats, unit[:rest] + after)


def expand(text: str, field: str = "pattern") -> tuple[Layer, ...]:
    """The layers in `text`, counts multiplied out: "gdn*3 full" -> gdn, gdn, gdn, full."""
    layers: list[Layer] = []
    for term in text.split():
        match = _TERM.match(term)
        require(
            match is not None,
            field,
            f"has {term!r}: write mixer names, each NAME or NAME*COUNT (or NAME+FEEDFORWARD)",
        )
        times = int(match["times"] or 1)
        require(times >= 1, field, f"has {term!r}: the count must be at least 1")
        require(
            len(layers) + times <= MAX_LAYERS,
            field,
            f"has {term!r}: there may be {MAX_LAYERS:,} layers at most",
        )
        layers += [Layer(match["mixer"], match["feedforward"])] * times
    return tuple(layers)


def _terms(
    text: str, field: str, mixers: tuple[str, ...], feedforwards: tuple[str, ...]
) -> tuple[Layer, ...]:
    layers = expand(text, field)
    for mixer, feedforward in layers:
        require(
            mixer == NONE or mixer in mixers,
            field,
            f"names mixer {mixer!r}, not defined: {nearest(mixer, mixers)}",
        )
        require(
            feedforward in (None, NONE) or feedforward in feedforwards,
            field,
            f"names feed-forward {feedforward!r}, not defined: {nearest(feedforward, feedforwards)}",
        )
        require(
            (mixer, feedforward) != (NONE, NONE),
            field,
            f"has '{NONE}+{NONE}', a layer of nothing",
        )
    return layers
