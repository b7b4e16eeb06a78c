"""Settings as plain nested data, as in `config.json`, and as flat dotted keys."""

import dataclasses
from collections.abc import Mapping
from typing import Any


def to_dict(config: Any) -> Any:
    """The config as plain data for JSON, as `config.json` stores it and `read` reads it."""
    if dataclasses.is_dataclass(config):
        fields = {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
        kind = getattr(config, "kind_name", None)
        return {"kind": kind, **fields} if kind else fields
    if isinstance(config, Mapping):
        return {k: to_dict(v) for k, v in config.items()}
    if isinstance(config, tuple | list):
        return [to_dict(v) for v in config]
    return config


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Nested plain settings as {dotted key: value}; an empty mapping is a value."""
    if isinstance(settings, dict) and settings:
        items = [flat(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in settings.items()]
        return {k: v for item in items for k, v in item.items()}
    return {prefix: settings}
