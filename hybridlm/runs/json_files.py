"""JSON files of a run: written whole or not at all, read with one error sentence if damaged."""

import pathlib
from typing import Any

from hybridlm.errors import RunError
from hybridlm.settings import json_text
from hybridlm.storage.writing import write_text

#: The parts of `config.json` and `model.json`; each is an object, or null.
_SECTIONS = ("model", "data", "train", "optimizer", "tokenizer", "from")


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


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file of a run.

    Raises:
      RunError: as `read_json`, and if it is another JSON value.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged: it holds no JSON object")
    return value


def read_settings(path: pathlib.Path) -> dict[str, Any]:
    """The settings in a `config.json` or a `model.json`.

    Raises:
      RunError: as `read_object`, and if a part of them is no object.
    """
    settings = read_object(path)
    for key in _SECTIONS:
        if not isinstance(settings.get(key), dict | None):
            raise RunError(f"{path} is damaged: its {key} is no JSON object")
    return settings
