"""Settings whose `kind` selects their class: mixers, feed-forwards."""

from collections.abc import Callable, Mapping
from typing import Any

from hybridlm.errors import ConfigError
from hybridlm.settings.reader import nearest, read_dataclass


def read_kind(
    value: Any,
    path: str,
    kinds: Mapping[str, type],
    *,
    default: str | None = None,
    prepare: Callable[[type, dict[str, Any]], None] = lambda cls, settings: None,
) -> Any:
    """Reads a mapping into the dataclass that its `kind` selects.

    Args:
      value: the mapping, or an instance of one of the dataclasses, which is returned.
      path: the mapping's key in the config, for errors.
      kinds: dataclass by kind.
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
        raise ConfigError(f"{path}.kind is {kind!r}: {nearest(kind, kinds)}")
    prepare(kinds[kind], settings)
    return read_dataclass(kinds[kind], settings, path)
