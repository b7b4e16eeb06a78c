"""Globs over dotted names, such as those of a model's parameters ("layers.3.mixer.q.kernel").

`*` matches any text, dots too, `?` one character and `[0-5]` one of a set; `|` separates
alternatives: "head|*.gate". A glob that matches the beginning of a name up to a dot matches the
name: "layers.1" matches all parameters of layer 1, and none of layer 10. `!` before a glob takes
names that it matches out again: "*|!layers.*.mixer" is all but the mixers.
"""

import difflib
import fnmatch
from collections.abc import Iterable, Sequence

from hybridlm.errors import ConfigError


def select(globs: str, names: Iterable[str], setting: str) -> list[str]:
    """The names that match, in their own order; none for empty `globs`.

    Args:
      globs: alternatives with "|" between.
      setting: the setting that gives the globs, for errors.

    Raises:
      ConfigError: where an alternative is empty or matches no name; it says which are near.
    """
    if not globs:
        return []
    names, chosen = list(names), set[str]()
    for part in globs.split("|"):
        glob = part.strip().removeprefix("!")
        if not glob:
            raise ConfigError(f"{setting} is {globs!r}, with an empty glob: write 'head|*.gate'")
        found = {name for name in names if _matches(glob, name)}
        if not found:
            raise ConfigError(
                f"{setting} has {glob!r}, which matches no name: {_near(glob, names)}"
            )
        chosen = chosen - found if part.strip().startswith("!") else chosen | found
    return [name for name in names if name in chosen]


def _matches(glob: str, name: str) -> bool:
    return any(fnmatch.fnmatchcase(start, glob) for start in _starts(name))


def _starts(name: str) -> list[str]:
    """The name up to each of its dots, and the whole name."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _near(glob: str, names: Sequence[str]) -> str:
    known = list(dict.fromkeys(start for name in names for start in _starts(name)))
    close = difflib.get_close_matches(glob, known, n=3, cutoff=0.6)
    if close:
        return f"near it are {', '.join(close)}"
    return f"names begin with {', '.join(dict.fromkeys(name.split('.')[0] for name in names))}"
