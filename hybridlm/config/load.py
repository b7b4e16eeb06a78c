"""Makes a validated Config from `file.py:arg` and `--config.a.b=value`; uses no device."""

import ast
import contextlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hybridlm.config.recipe_file import imported, one_line, split
from hybridlm.errors import ConfigError
from hybridlm.settings import json_text
from hybridlm.settings.names import nearest
from hybridlm.settings.reader import read_dataclass
from hybridlm.storage import open_path
from hybridlm.train.settings import Config


def load(spec: str, overrides: Sequence[tuple[str, str]] = ()) -> Config:
    """The Config of recipe `spec`.

    Args:
      spec: "path/to/file.py" or "path/to/file.py:arg"; the file defines `get_config(arg)`.
      overrides: (dotted key, text of the value) pairs; later pairs win. A value is read as a Python
        literal if it is one, else as text.

    Raises:
      ConfigError: one sentence that names the key or file.
    """
    settings = recipe(spec)
    if not isinstance(settings, dict):
        raise ConfigError(f"get_config of {spec} returned {settings!r}, not a ConfigDict")
    for key, text in overrides:
        override(settings, key, literal(text))
    return read(settings)


def read(settings: dict[str, Any]) -> Config:
    """Validates nested dicts of settings, as in a recipe or a run's `config.json`."""
    return read_dataclass(Config, settings, "")


def read_json(path: os.PathLike[str] | str) -> Config:
    """The Config that a run saved.

    Raises:
      ConfigError: if the file is not JSON, or not a config of this version.
    """
    try:
        settings = json_text.loads(open_path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: {error}") from None
    try:
        return read(settings)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def recipe(spec: str) -> Any:
    """Runs `get_config` of the file in `spec`; returns its result as nested plain dicts."""
    path, arg = split(spec)
    with imported(path) as module:
        get_config = getattr(module, "get_config", None)
        if not callable(get_config):
            raise ConfigError(f"{path} defines no function get_config(arg)")
        takes_arg = _takes_arg(get_config)
        if arg and not takes_arg:
            raise ConfigError(f"get_config of {path} takes no argument, but --config gives {arg!r}")
        where = f"get_config({arg!r})" if takes_arg else "get_config()"
        with _config_errors(f"{where} of {path}"):
            return plain(get_config(arg) if takes_arg else get_config())


def sweep(spec: str) -> list[dict[str, str]]:
    """Runs `sweep()` of the file in `spec`; returns the overrides of each run that it yields.

    Like `get_config`, `sweep` may take the argument of `spec`.

    Returns:
      A dict for each run, in order: dotted key -> text of the value, as in `load`.

    Raises:
      ConfigError: if the file has no `sweep`, or a value has no form on a command line.
    """
    path, arg = split(spec)
    with imported(path) as module:
        function = getattr(module, "sweep", None)
        if not callable(function):
            raise ConfigError(
                f"{path} defines no function sweep(), which yields the overrides of each run as a"
                ' dict, e.g. {"optimizer.lr": 1e-3}'
            )
        with _config_errors(f"sweep() of {path}"):
            runs = list(function(arg) if _takes_arg(function) else function())
    if not runs:
        raise ConfigError(f"sweep() of {path} yields no run")
    for number, run in enumerate(runs, start=1):
        if not isinstance(run, Mapping) or not all(isinstance(key, str) for key in run):
            raise ConfigError(
                f"run {number} of sweep() of {path} is {run!r}, and not a dict of dotted keys to"
                " values"
            )
    try:
        return [{key: text(value, key) for key, value in run.items()} for run in runs]
    except ConfigError as error:
        raise ConfigError(f"sweep() of {path}: {error}") from None


def _takes_arg(function: Callable[..., Any]) -> bool:
    try:
        return bool(inspect.signature(function).parameters)
    except ValueError:  # a builtin without a signature
        return False


@contextlib.contextmanager
def _config_errors(what: str) -> Iterator[None]:
    """Turns an error in a recipe's code into a ConfigError that names `what`."""
    try:
        yield
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{what} failed: {one_line(error)}") from error


def plain(settings: Any) -> Any:
    """A ConfigDict as nested plain dicts, with references resolved."""
    if hasattr(settings, "items"):
        return {str(k): plain(v) for k, v in settings.items()}
    return [plain(v) for v in settings] if isinstance(settings, list | tuple) else settings


def override(settings: dict[str, Any], key: str, value: Any) -> None:
    """Sets dotted `key` in nested `settings`; values on the path to it must be dicts."""
    node, names = settings, key.split(".")
    if not all(names):
        raise ConfigError(f"--config.{key} has an empty name in its key")
    for depth, name in enumerate(names[:-1]):
        path = ".".join(names[: depth + 1])
        if node.get(name) is None and (depth or name in node):
            node[name] = {}
        elif name not in node:
            if name not in Config.__dataclass_fields__:
                raise ConfigError(
                    f"unknown key {path}: {nearest(name, Config.__dataclass_fields__)}"
                )
            node[name] = {}
        if not isinstance(node[name], dict):
            raise ConfigError(
                f"{path} is {node[name]!r}, a value: it has no key {names[depth + 1]}"
            )
        node = node[name]
    node[names[-1]] = value


def literal(text: str) -> Any:
    """`text` read as a Python literal, or `text` itself if it is none.

    Raises:
      ConfigError: if a dict in it has a key twice, of which Python would keep the last.
    """
    try:
        tree = ast.parse(text.lstrip(" \t"), mode="eval")
        value = ast.literal_eval(tree)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            keys = [ast.literal_eval(key) for key in node.keys]
            for i, key in enumerate(keys):
                if key in keys[:i]:
                    raise ConfigError(f"{text[:60]} has the key {key!r} twice: remove one of them")
    return value


def text(value: Any, key: str) -> str:
    """The text after `--config.KEY=` that `literal` reads back as `value`.

    Raises:
      ConfigError: if no text gives this value.
    """
    value = plain(value.item() if isinstance(value, np.generic) else value)
    for written in (value, repr(value)):
        if isinstance(written, str) and (read := literal(written)) == value:
            if type(read) is type(value):
                return written
    raise ConfigError(
        f"{key} is {value!r} ({type(value).__name__}), which a command line cannot express: use"
        " numbers,"
        " text, True, False, None, and lists or dicts of them"
    )
