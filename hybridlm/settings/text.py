"""Settings given as text, as on a command line: text to values, then the reader of all settings."""

import dataclasses
import pathlib
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from hybridlm.errors import ConfigError, UserError
from hybridlm.settings.names import nearest
from hybridlm.settings.reader import read_dataclass
from hybridlm.storage import open_path

#: Metadata of a field that counts tokens: "4k" is 4096 there, "1M" 1048576.
TOKENS = {"unit": "tokens"}
_MULTIPLES = {"": 1, "k": 1024, "K": 1024, "M": 1024**2}
_ONE = {int: "a whole number", float: "a number"}
_SEVERAL = {int: "whole numbers", float: "numbers"}


def read_texts(cls: type, texts: Mapping[str, Any], written: Mapping[str, str] = {}) -> Any:
    """Reads dataclass `cls` from {field: text}; the value of a flag is True.

    Args:
      written: what a user writes for a field, where that is not "--FIELD": "BASE" or "--from".

    Raises:
      UserError: one sentence that begins with what the user writes for the field.
    """
    hints = typing.get_type_hints(cls)  # without bounds: those are the reader's
    counts_tokens = {f.name: f.metadata.get("unit") == "tokens" for f in dataclasses.fields(cls)}
    values = {
        name: text
        if text is True
        else _value(hints[name], text, written.get(name, f"--{name}"), counts_tokens[name])
        for name, text in texts.items()
    }
    return _read(cls, values, written)


def read_options(cls: type, values: Mapping[str, Any], names: Mapping[str, str] = {}) -> Any:
    """Reads dataclass `cls`; errors name "--FIELD".

    Args:
      names: option of a field, where it is not the field's name.

    Raises:
      UserError: one sentence that begins with the option.
    """
    return _read(cls, values, {field: f"--{option}" for field, option in names.items()})


def _read(cls: type, values: Mapping[str, Any], written: Mapping[str, str]) -> Any:
    try:
        return read_dataclass(cls, values, "")
    except ConfigError as error:  # its message begins with the key
        key, rest = re.match(r"(\w*)(?:\[\d+\])?(.*)", str(error), re.DOTALL).groups()
        rest = re.sub(r", or (be )?None[^,]*", "", rest)  # an option that is not given
        raise UserError(f"{written.get(key, f'--{key}')}{rest}") from None


def _value(hint: Any, text: str, option: str, counts_tokens: bool) -> Any:
    """`text` as a value of type `hint`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = [a for a in args if a is not type(None)]
        if len(kinds) == 1:
            return _value(kinds[0], text, option, counts_tokens)
        for kind in kinds:
            try:
                return _value(kind, text, option, counts_tokens)
            except UserError:
                continue
        raise UserError(f"{option} must be {' or '.join(map(_words, kinds))}, not {_shown(text)}")
    if origin is typing.Literal:
        choices = {str(a): a for a in args}
        if text not in choices:
            raise UserError(f"{option} is {_shown(text)}: {nearest(text, choices)}")
        return choices[text]
    if origin is tuple:
        (kind, _) = args
        try:
            return tuple(_value(kind, word, option, counts_tokens) for word in text.split(","))
        except UserError:
            if kind not in _SEVERAL:
                raise
            more = " (4k is 4096)" if counts_tokens else ""
            raise UserError(
                f"{option} must be {_SEVERAL[kind]} with commas between{more}, not {_shown(text)}"
            ) from None
    if hint is pathlib.Path:
        if not text:
            raise UserError("a path is empty: name a file or folder ('.' is this one)")
        try:
            return open_path(text)
        except UserError as error:
            raise UserError(f"{option}: {error}") from None
    if hint in _ONE:
        try:
            return _tokens(text) if counts_tokens else hint(text)
        except ValueError:
            more = " (4k is 4096)" if counts_tokens else ""
            raise UserError(f"{option} must be {_ONE[hint]}{more}, not {_shown(text)}") from None
    return text


def _tokens(text: str) -> int:
    """A whole number of tokens; a suffix k multiplies by 1024, M by 1024 squared."""
    number, suffix = re.fullmatch(r"(.*?)([kKM]?)", text, re.DOTALL).groups()
    return int(number) * _MULTIPLES[suffix]


def _words(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    return _ONE.get(kind, "text")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
