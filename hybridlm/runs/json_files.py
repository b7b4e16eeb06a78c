"""JSON files of a run: written whole or not at all, read with one error sentence if damaged."""

import pathlib
from typing import Any

from hybridlm.errors import RunError
from hybridlm.settings import json_text
from hybridlm.storage.writing import write_text


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file; numbers that are not finite as `hybridlm.settings.json_text` does.

    Raises:
      WriteError: if it cannot be written.
    """
    write_text(path, json_text.dumps(value, indent=2) + "\n")


def read_json(path: pathlib.Path) -> Any:
    """The value in a JSON file of a run.

    Raises:
      RunError: if it is not valid JSON, or has a key twice.
    """
    try:
        return json_text.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}") from None
