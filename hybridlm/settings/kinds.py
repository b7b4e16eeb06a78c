"""Settings whose `kind` selects their class: mixers, feed-forwards."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from hybridlm.errors import ConfigError
from hybridlm.settings.names import ABSENT, explained
from hybridlm.settings.reader import read_dataclass


def read_kind(
    value: Any,
    path: str,
    kinds: Mapping[str, type],
    what: str,
    *,
    absent: Iterable[str] = (),
    default: str | None = None,
    prepare: Callable[[type, dict[str, Any]], None] = lambda cls, settings: None,
) -> Any:
    """Reads a mapping into the dataclass that its `kind` selects.

    Args:
      value: the mapping, or an instance of one of the dataclasses, which is returned.
      path: the mapping's key in the config, for errors.
      kinds: dataclass by kind. Its `other_names`, if it has them, are what else the kind is called,
        each with the settings that make it that, or "".
      what: what the kinds are, for errors: "mixer".
      absent: names of well-known kinds that are not among `kinds`.
      default: the kind if the mapping has none; if None, the mapping must have one.
      prepare: called with the dataclass and the settings before they are read; may change the
        settings.

    Raises:
      ConfigError: if the kind is missing or unknown, or a setting is invalid.
    """
    if isinstance(value, tuple(kinds.values())):
        return value
    if not hasattr(value, "items"):
        raise ConfigError(f"{path} must be a mapping with a kind, not {value!r}")
    settings = dict(value.items())
    kind = settings.pop("kind", default)
    if kind is None:
        raise ConfigError(f"{path}.kind is missing: valid are: {', '.join(sorted(kinds))}")
    if not isinstance(kind, str) or kind not in kinds:
        meant = explained(str(kind), kinds, _other_names(kinds, absent), what)
        raise ConfigError(f"{path}.kind is {kind!r}: {meant}")
    prepare(kinds[kind], settings)
    return read_dataclass(kinds[kind], settings, path)


def _other_names(kinds: Mapping[str, type], absent: Iterable[str]) -> dict[str, str]:
    """By other name, the text of what to write instead."""
    found = dict.fromkeys(absent, ABSENT)
    for kind, cls in kinds.items():
        for name, settings in vars(cls).get("other_names", {}).items():  # not a base class's
            found[name] = f"{kind!r} with {settings}" if settings else repr(kind)
    return found
