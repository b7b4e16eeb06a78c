"""Strict JSON: an object names each key once, and NaN and infinity have names.

`loads(dumps(value)) == value`. JSON's grammar has no NaN and no infinity: `dumps` writes the strings
"NaN", "Infinity" and "-Infinity", as protobuf's JSON does (https://protobuf.dev/programming-guides/json).
A text that reads like one of these is written with "~" before it, and `loads` takes one "~" away, so
that texts stay texts.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

_NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
#: What `metrics.jsonl` held before these names were chosen.
OLD_NAMES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_MARKED = re.compile(r"~*(NaN|-?Infinity|nan|-?inf)")
_QUOTED = re.compile(r'"~*(NaN|-?Infinity|nan|-?inf)"')

_TOKENS = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?|[{}]', re.DOTALL)


def dumps(value: Any, **options: Any) -> str:
    """JSON of a value; `options` are those of `json.dumps`."""
    return json.dumps(_named(value), allow_nan=False, **options)


def loads(data: bytes | str, old_names: bool = False) -> Any:
    """The value of a JSON text that we wrote.

    Args:
      data: what `dumps` wrote, or JSON with the bare words NaN and Infinity, which Python writes.
      old_names: whether the strings of `OLD_NAMES` are numbers too.

    Raises:
      ValueError, RecursionError: see `parse_json`.
    """
    text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
    value, names = parse_json(text), _NAMES | OLD_NAMES if old_names else _NAMES
    return _numbers(value, names) if _QUOTED.search(text) else value


def _named(value: Any) -> Any:
    """Replaces numbers that are not finite by their names, and marks texts that look like them."""
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str):
        return f"~{value}" if _MARKED.fullmatch(value) else value
    if isinstance(value, dict):
        return {key: _named(inner) for key, inner in value.items()}
    return [_named(inner) for inner in value] if isinstance(value, list | tuple) else value


def _numbers(value: Any, names: Mapping[str, float]) -> Any:
    """The reverse of `_named`."""
    if isinstance(value, str):
        marked = value.startswith("~") and _MARKED.fullmatch(value)
        return value[1:] if marked else names.get(value, value)
    if isinstance(value, dict):
        return {key: _numbers(inner, names) for key, inner in value.items()}
    return [_numbers(inner, names) for inner in value] if isinstance(value, list) else value


def shown(line: bytes) -> str:
    """A line of a file for an error: its two ends, if it is long."""
    text = line.decode("utf-8", "replace")
    return repr(text if len(text) <= 80 else f"{text[:50]} ... {text[-25:]}")


class _Duplicate(Exception):
    pass


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text.

    Args:
      data: text, or the bytes of a UTF-8 file, which may begin with a byte order mark.

    Raises:
      ValueError: if it is malformed, or an object has a key twice (Python's reader would keep the
        last); the message names the line.
      RecursionError: if it is nested too deeply.
    """
    text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
    if text.startswith("\ufeff"):
        raise ValueError("it begins with a byte order mark, U+FEFF: save it without one")
    try:
        return json.loads(text, object_pairs_hook=_object)
    except _Duplicate:
        key, line = _first_duplicate(text)
        where = f", the second time in line {line}" if "\n" in text.strip() else ""
        raise ValueError(f"an object has the key {key!r} twice{where}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Duplicate
    return found


def _first_duplicate(text: str) -> tuple[str, int]:
    """The first key that its object has already, and the line (from 1) of its second place."""
    objects: list[set[str]] = []
    for token in _TOKENS.finditer(text):
        if token[0] == "{":
            objects.append(set())
        elif token[0] == "}":
            objects.pop()
        elif token[2] is not None:
            key = json.loads(token[1], strict=False)
            if key in objects[-1]:
                return key, text.count("\n", 0, token.start()) + 1
            objects[-1].add(key)
    raise AssertionError("the text has no key twice")
