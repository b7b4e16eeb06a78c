"""Reading nested mappings into frozen dataclasses, with errors that name the key and the nearest.

The reader knows nothing of hybridlm: it follows the type annotations of a dataclass. Bounds
(`hybridlm.settings.bounds`) and what concerns several fields (heads that divide) the dataclass
checks itself when it is made, by raising `Invalid(field, message)`; the reader puts the path in
front.
"""

import contextlib
import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from hybridlm.errors import ConfigError

LARGEST = 2**31 - 1  # whole number


class Invalid(Exception):
    """A value that is of the right type and still wrong; `field` is the dataclass field's name."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


def require(condition: bool, field: str, message: str) -> None:
    """Raises `Invalid(field, message)` unless `condition` holds."""
    if not condition:
        raise Invalid(field, message)


@contextlib.contextmanager
def within(field: str) -> Iterator[None]:
    """Puts `field` in front of the name in an `Invalid` raised inside."""
    try:
        yield
    except Invalid as error:
        raise Invalid(f"{field}.{error.field}", str(error)) from None


def nearest(name: str, valid: typing.Iterable[str]) -> str:
    """A phrase that offers the nearest of `valid` names, or lists them."""
    valid = sorted(valid)
    close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.7)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"valid are: {', '.join(valid)}" if valid else "none is defined"


def read_dataclass(cls: type, value: Any, path: str) -> Any:
    """Reads mapping `value` into dataclass `cls`.

    Args:
      cls: a frozen dataclass whose annotations are bool, int, float, str, `X | None`, `Literal`,
        `tuple[X, ...]`, `dict[str, X]` or other such dataclasses, with bounds where it has them.
      value: a mapping (an `ml_collections.ConfigDict` or a dict).
      path: the key of this mapping in the config, "" at the root; used in errors only.

    Raises:
      ConfigError: one sentence naming the key, what was wrong and the nearest valid one.
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
        read[key] = read_value(hints[key], item, key_path)
    for name, field in fields.items():
        missing = dataclasses.MISSING
        if name not in read and field.default is missing and field.default_factory is missing:
            raise ConfigError(f"{_join(path, name)} is missing")
    try:
        return cls(**read)
    except Invalid as error:
        raise ConfigError(f"{_join(path, error.field)} {error}") from None


def read_value(hint: Any, value: Any, path: str) -> Any:
    """Reads `value` as type `hint`; an int is a valid float, a bool is no number.

    Whole numbers lie below 2^31 and floats are finite: sizes and positions are int32 on devices.
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
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
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
        return f"a number of {value.bit_length()} bits"  # Python refuses to write the longest
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
