"""JSON files of a run: written atomically, read with one error sentence if damaged."""

import json
import pathlib
from typing import Any

from hybridlm.errors import RunError
from hybridlm.settings.json_text import parse_json


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file atomically."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


def read_json(path: pathlib.Path) -> Any:
    """The value in a JSON file of a run.

    Raises:
      RunError: if it is not valid JSON, or has a key twice.
    """
    try:
        return parse_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}") from None
