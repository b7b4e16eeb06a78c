"""Descriptions of settings for documentation and command-line help, from their dataclasses."""

import dataclasses
import inspect
import re
import types
import typing
from pathlib import Path
from typing import Any

from hybridlm.settings.bounds import bounds_of


def summary_and_meanings(cls: type) -> tuple[str, dict[str, str]]:
    """The docstring before "Attributes:", and the meaning of each attribute, inherited ones too."""
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        meanings |= _meanings(inspect.cleandoc(base.__doc__ or ""))
    summary, _, _ = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")
    return " ".join(summary.split()), meanings


def _meanings(text: str) -> dict[str, str]:
    _, _, attributes = text.partition("\nAttributes:\n")
    meanings: dict[str, str] = {}
    names: list[str] = []
    for line in attributes.splitlines():
        entry = re.match(r"^  ((?:\w+)(?:, \w+)*): (.*)$", line)
        if entry:
            names = entry[1].split(", ")
            meanings |= {name: entry[2] for name in names}
        elif line.strip():
            meanings |= {name: f"{meanings[name]} {line.strip()}" for name in names}
    return meanings


def type_text(hint: Any) -> str:
    """The type of a setting and its bounds as text.

    `hint` is an annotation from `typing.get_type_hints(cls, include_extras=True)`.
    """
    hint, bounds = bounds_of(hint)
    return _plain_type(hint) + "".join(bound.description for bound in bounds)


def _plain_type(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        bounded = any(bounds_of(a)[1] for a in args)
        return (", or " if bounded else " or ").join(map(type_text, args))
    if origin is typing.Literal:
        return ", ".join(f"`{a!r}`" for a in args)
    if origin is dict:
        if typing.get_origin(args[1]) in (typing.Union, types.UnionType):
            return "value by name"
        return "number by name" if args[1] is float else "settings by name"
    if origin is tuple:
        text = type_text(args[0])
        plural = "s" * (text[-1].isalpha() and not text.endswith("s"))
        return f"list of {text}{plural}"
    if dataclasses.is_dataclass(hint):
        return "settings"
    names = {
        int: "whole number",
        float: "number",
        str: "text",
        bool: "`True`, `False`",
        Path: "path",
    }
    return names.get(hint, "`None`" if hint is type(None) else str(hint))


def default_text(field: dataclasses.Field) -> str:
    """The default of a setting as text."""
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()!r}`"
    if field.default is dataclasses.MISSING:
        return "required"
    if dataclasses.is_dataclass(field.default):
        return "its own"
    return f"`{field.default!r}`"
