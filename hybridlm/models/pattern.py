"""Layer patterns: "swa full", "gdn*3 full" -> the names of prefix, repeating unit and suffix."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from hybridlm.settings.reader import nearest, require

MAX_LAYERS = 10_000  # what is beyond is a slip, and would be laid out name by name
_TERM = re.compile(r"^(?P<name>[A-Za-z_][A-Za-z0-9_]*)(\*(?P<times>[0-9]+))?$")


class Layout(NamedTuple):
    """Mixer names by where they stand: `unit` is repeated `repeats` times by one scan."""

    prefix: tuple[str, ...]
    unit: tuple[str, ...]
    repeats: int
    suffix: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The mixer name of each layer, bottom to top."""
        return self.prefix + self.unit * self.repeats + self.suffix


def parse(pattern: str, depth: int, prefix: str, suffix: str, defined: Iterable[str]) -> Layout:
    """Lays a pattern out over `depth` layers.

    The unit is repeated as often as it fits between prefix and suffix; if layers remain, the
    unit's first ones are laid out once more below the suffix.

    Raises:
      Invalid: for a malformed term, an undefined mixer, or a prefix and suffix that leave no room.
    """
    before = _terms(prefix, "prefix", defined)
    unit = _terms(pattern, "pattern", defined)
    after = _terms(suffix, "suffix", defined)
    require(bool(unit), "pattern", "is empty")
    room = depth - len(before) - len(after)
    require(
        room >= 0,
        "depth",
        f"is {depth}, but prefix and suffix have {len(before) + len(after)} layers",
    )
    repeats, rest = divmod(room, len(unit))
    return Layout(before, unit, repeats, unit[:rest] + after)


def expand(text: str, field: str = "pattern") -> tuple[str, ...]:
    """The names in `text`, counts multiplied out: "gdn*3 full" -> (gdn, gdn, gdn, full)."""
    names: list[str] = []
    for term in text.split():
        match = _TERM.match(term)
        require(
            match is not None, field, f"has {term!r}: write mixer names, each NAME or NAME*COUNT"
        )
        times = int(match["times"] or 1)
        require(times >= 1, field, f"has {term!r}: the count must be at least 1")
        require(
            len(names) + times <= MAX_LAYERS,
            field,
            f"has {term!r}: there may be {MAX_LAYERS:,} layers at most",
        )
        names += [match["name"]] * times
    return tuple(names)


def _terms(text: str, field: str, defined: Iterable[str]) -> tuple[str, ...]:
    names = expand(text, field)
    for name in names:
        require(
            name in defined, field, f"names mixer {name!r}, not defined: {nearest(name, defined)}"
        )
    return names
