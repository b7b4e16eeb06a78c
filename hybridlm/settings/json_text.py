"""Strict JSON: an object names each key once."""

import json
import re
from typing import Any

_TOKENS = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?|[{}]', re.DOTALL)


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
