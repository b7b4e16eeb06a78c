"""Parses layer patterns ("swa full", "gdn*3 full", "ssd+none none+mlp") into layouts."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from hybridlm.settings.names import nearest
from hybridlm.settings.reader import require

MAX_LAYERS = 10_000  # a larger count is a mistake, and would make a list of that length
NONE = "none"  # in a pattern: no mixer, or no feed-forward
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
        """The layer as the pattern writes it."""
        return self.mixer if self.feedforward is None else f"{self.mixer}+{self.feedforward}"


class Layout(NamedTuple):
    """The layers by position; one scan runs `unit` `repeats` times.

    Attributes:
      rest: the number of layers at the start of `suffix` that are the first of one more unit.
    """

    prefix: tuple[Layer, ...]
    unit: tuple[Layer, ...]
    repeats: int
    suffix: tuple[Layer, ...]
    rest: int = 0

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, bottom to top."""
        return self.prefix + self.unit * self.repeats + self.suffix

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each layer's mixer, bottom to top."""
        return tuple(layer.mixer for layer in self.layers)

    @property
    def labels(self) -> tuple[str, ...]:
        """Each layer as the pattern writes it, bottom to top."""
        return tuple(layer.label for layer in self.layers)

    @property
    def partial_unit(self) -> str:
        """What the last, incomplete unit is, if the depth leaves one; else "" (nothing)."""
        if not self.rest:
            return ""
        unit, rest = (" ".join(x.label for x in self.unit[:n]) for n in (None, self.rest))
        return (
            f"{self.repeats} x ({unit}), then only {self.rest} of these {len(self.unit)} layers"
            f" ({rest})"
        )


def parse(
    pattern: str,
    depth: int,
    prefix: str,
    suffix: str,
    mixers: Iterable[str],
    feedforwards: Iterable[str] = (),
) -> Layout:
    """The layout of a pattern over `depth` layers.

    The unit is repeated as often as it fits between prefix and suffix. If layers remain, the first
    layers of the unit fill them, below the suffix.

    Raises:
      Invalid: if a term is malformed, a mixer or feed-forward is not defined, or prefix and suffix
        have more than `depth` layers.
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
    return Layout(before, unit, repeats, unit[:rest] + after, rest)


def expand(text: str, field: str = "pattern") -> tuple[Layer, ...]:
    """The layers of `text`, with counts expanded: "gdn*3 full" -> gdn, gdn, gdn, full."""
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
