"""The options of a command, generated from its settings dataclasses."""

import argparse
import dataclasses
import pathlib
import shlex
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from hybridlm.commands.command import Command, Overrides
from hybridlm.errors import UserError
from hybridlm.settings.describe import summary_and_meanings
from hybridlm.settings.names import nearest
from hybridlm.settings.text import read_texts


class Parser(argparse.ArgumentParser):
    """An argument parser that reports an error as one sentence."""

    def __init__(self, prog: str, notes: Callable[[], str] = lambda: "", **settings: Any):
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, allow_abbrev=False, formatter_class=layout, **settings)
        self._notes = notes

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")

    def format_help(self) -> str:
        self.epilog = self._notes()
        return super().format_help()


class StoreLast(argparse.Action):
    """Stores the last value of an option, and says so where an earlier one was another."""

    def __call__(self, parser, namespace, values, option_string=None):
        earlier = getattr(namespace, self.dest, values)  # the default is SUPPRESS
        _say_if_replaced(option_string, earlier, values)
        setattr(namespace, self.dest, values)


def parse(command: Command, words: Sequence[str]) -> tuple[list[Any], Overrides]:
    """The settings of a command, an instance of each of its dataclasses, and the overrides.

    Raises:
      UserError: if an option is unknown or missing, or a value is invalid.
    """
    classes = command.settings()
    parser, needed = _parser(command, classes)
    given, rest = parser.parse_known_args(words)
    texts = vars(given)
    missing = [f"--{name.removesuffix('_')}" for name in needed if name not in texts]
    if len(missing) == 1 and rest and not rest[0].startswith("-"):
        word = shlex.quote(rest[0])
        parser.error(f"{word} has no option before it: write {missing[0]} {word}")
    written = {
        name: name.upper() if name in command.positional else f"--{name.removesuffix('_')}"
        for cls in classes
        for name in _fields(cls)
    }
    known = [option for option in written.values() if option.startswith("--")]
    overrides = _overrides(rest, known, command.takes_overrides)
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    read = [
        read_texts(cls, {name: texts[name] for name in _fields(cls) if name in texts}, written)
        for cls in classes
    ]
    return read, overrides


def _parser(command: Command, classes: Sequence[type]) -> tuple[Parser, list[str]]:
    """The parser, and the names of the options that must be given."""
    parser = Parser(f"hybridlm {command.name}", command.notes, description=command.help)
    required = parser.add_argument_group("required")
    optional = parser.add_argument_group("optional")
    usage, required_options = [], []
    for cls in classes:
        for name, field, hint, meaning in _described(cls):
            help = (meaning + _default(field)).replace("%", "%%")
            needed = field.default is field.default_factory  # true only if both are MISSING
            group = required if needed else optional
            if name in command.positional:
                absent = {} if needed else dict(nargs="?", default=argparse.SUPPRESS)
                group.add_argument(name, metavar=name.upper(), help=help, **absent)
                usage.append(name.upper() if needed else f"[{name.upper()}]")
            elif hint is bool:
                action, absent = "store_true", argparse.SUPPRESS
                group.add_argument(f"--{name}", action=action, default=absent, help=help)
            else:
                metavar = _metavar(hint, field)
                option = name.removesuffix("_")  # `from` is a word of Python
                if needed:
                    usage.append(f"--{option} {metavar}")
                    required_options.append(name)
                group.add_argument(
                    f"--{option}",
                    action=StoreLast,
                    dest=name,
                    metavar=metavar,
                    default=argparse.SUPPRESS,
                    help=help,
                )
    parser.usage = " ".join(["%(prog)s", *usage, "[--option value ...]"])
    return parser, required_options


def _described(cls: type) -> Iterator[tuple[str, dataclasses.Field, Any, str]]:
    """(name, field, type, meaning) of each field."""
    meanings = summary_and_meanings(cls)[1]
    hints = typing.get_type_hints(cls)
    for name, field in _fields(cls).items():
        meaning = meanings.get(name, "").replace("`", "").removesuffix(".")
        yield name, field, hints[name], meaning


def _fields(cls: type) -> dict[str, dataclasses.Field]:
    return {field.name: field for field in dataclasses.fields(cls)}


def _default(field: dataclasses.Field) -> str:
    """The default for help; the docstring describes defaults of None, False and "" if needed."""
    value = field.default
    if value is dataclasses.MISSING or value is None or value is False or value == "":
        return ""
    return f" (default: {','.join(map(str, value)) if isinstance(value, tuple) else value})"


def _metavar(hint: Any, field: dataclasses.Field) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return "|".join(_metavar(a, field) for a in args if a is not type(None))
    if origin is typing.Literal:
        return "|".join(map(str, args))
    if origin is tuple:
        return f"{_metavar(args[0], field)},..."
    if field.metadata.get("unit") == "tokens":
        return "TOKENS"
    return {int: "N", float: "X", str: "TEXT", pathlib.Path: "PATH"}[hint]


def _overrides(rest: Sequence[str], known: Sequence[str], taken: bool) -> Overrides:
    """(key, text) pairs of `--config.a.b=value` and `--config.a.b value`; of a key the last counts.

    Raises:
      UserError: if any other word is left over, or a key has no value.
    """
    pairs = []
    words = iter(rest)
    for word in words:
        if not (taken and word.startswith("--config.")):
            settings = " (settings are --config.a.b=value)" if taken else ""
            hint = nearest(
                word.partition("=")[0].replace("-", "_").replace("__", "--", 1),
                known,
            )
            raise UserError(f"unknown argument {word!r}: {hint}{settings}")
        key, equals, text = word.removeprefix("--config.").partition("=")
        if not equals:
            text = next(words, None)
            if text is None:
                raise UserError(f"--config.{key} has no value: write --config.{key}=value")
        _say_if_replaced(f"--config.{key}", dict(pairs).get(key, text), text)
        pairs.append((key, text))
    return pairs


def _say_if_replaced(option: str | None, earlier: str, text: str) -> None:
    """The last value counts, as scripts that append to a command expect; it is not silent."""
    if earlier != text:
        print(f"{option} is given twice: {text!r} counts, not {earlier!r}", file=sys.stderr)
