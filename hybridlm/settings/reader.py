"""Reads nested mappings into frozen dataclasses; errors name the key and the nearest valid one.

The reader follows the type annotations of a dataclass and does not depend on the rest of hybridlm.
The dataclass itself checks bounds (`hybridlm.settings.bounds`) and conditions on several fields
(heads that must divide) when an instance is created, and raises `Invalid(field, message)`; the
reader prefixes the path.
"""

import contextlib
import dataclasses
import pathlib
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from hybridlm.errors import ConfigError
from hybridlm.settings.names import explained, nearest

LARGEST = 2**31 - 1  # the largest whole number


class Invalid(Exception):
    """An invalid value of the right type; `field` is the name of the dataclass field."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


def require(condition: bool, field: str, message: str) -> None:
    """Raises `Invalid(field, message)` unless `condition` holds."""
    if not condition:
        raise Invalid(field, message)


@contextlib.contextmanager
def within(field: str) -> Iterator[None]:
    """Prefixes `field` to the field of an `Invalid` raised inside."""
    try:
        yield
    except Invalid as error:
        raise Invalid(f"{field}.{error.field}", str(error)) from None


def read_dataclass(cls: type, value: Any, path: str) -> Any:
    """Reads mapping `value` into dataclass `cls`.

    Args:
      cls: a frozen dataclass whose annotations are bool, int, float, str, `X | None`, `Literal`,
        `tuple[X, ...]`, `dict[str, X]` or other such dataclasses, optionally with bounds.
      value: a mapping (an `ml_collections.ConfigDict` or a dict).
      path: the key of this mapping in the config, "" at the root; used only in errors.

    Raises:
      ConfigError: if a key or value is invalid; one sentence that names the key, the problem and
        the nearest valid key.
    """
    if not isinstance(value, Mapping) and not hasattr(value, "items"):
        raise ConfigError(f"{path or 'config'} must be a mapping of settings, not {_show(value)}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    read = {}
    for key, item in value.items():
        key_path = _join(path, key)
        if key not in fields:
            raise ConfigError(f"unknown key {key_path}: {nearest(key, fields)}")
        _check_choice(hints[key], item, key_path, fields[key].metadata)
        read[key] = read_value(hints[key], item, key_path)
    for name, field in fields.items():
        missing = dataclasses.MISSING
        if name not in read and field.default is missing and field.default_factory is missing:
            raise ConfigError(f"{_join(path, name)} is missing")
    try:
        return cls(**read)
    except Invalid as error:
        raise ConfigError(f"{_join(path, error.field)} {error}") from None


def other_names(what: str, names: Mapping[str, str]) -> dict[str, Any]:
    """A field's metadata: what else its choices are called; see `names.explained`."""
    return {"other_names": (what, names)}


def _check_choice(hint: Any, value: Any, path: str, metadata: Mapping[str, Any]) -> None:
    """Explains the other names of a choice (a `Literal`) whose field declares them."""
    if "other_names" in metadata and isinstance(value, str):
        what, others = metadata["other_names"]
        valid = typing.get_args(hint)
        if value not in valid:
            raise ConfigError(f"{path} is {value!r}: {explained(value, valid, others, what)}")


def read_value(hint: Any, value: Any, path: str) -> Any:
    """Reads `value` as type `hint`; an int is a valid float, a bool is not a number.

    Whole numbers must be below 2^31, since sizes and positions are int32 on devices; floats must be
    finite.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [a for a in args if a is not type(None)]
        if len(options) == 1:
            return read_value(options[0], value, path)
        return _read_first(options, value, path)
    if origin is typing.Literal:
        if value not in args or isinstance(value, bool) != any(isinstance(a, bool) for a in args):
            raise ConfigError(f"{path} is {_show(value)}: {nearest(value, map(str, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path} must be a list, not {_show(value)}")
        return tuple(read_value(args[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not hasattr(value, "items"):
            raise ConfigError(f"{path} must be a mapping of names, not {_show(value)}")
        return {str(k): read_value(args[1], v, _join(path, k)) for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else read_dataclass(hint, value, path)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:
            raise ConfigError(f"{path} must be a finite number, not {_show(value)}")
        return float(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    # A path of a bucket is no pathlib.Path, but pure as that is.
    kind = pathlib.PurePath if hint is pathlib.Path else hint
    if not isinstance(value, kind) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{path} must be {_name(hint)}, not {_show(value)}")
    if hint is int and not -LARGEST <= value <= LARGEST:
        raise ConfigError(f"{path} must be below 2^31, not {_show(value)}")
    return value


def _read_first(options: list[Any], value: Any, path: str) -> Any:
    for option in options:
        try:
            return read_value(option, value, path)
        except ConfigError:
            continue
    raise ConfigError(f"{path} must be {' or '.join(map(_name, options))}, not {_show(value)}")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else str(key)


def _name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _show(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"  # Python refuses to print very long ones
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
