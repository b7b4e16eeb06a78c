"""What a workdir's results were made with: a file of settings that later runs must agree with.

A stage that is done is not done again, so its results stand for the settings they were made with.
"""

import os
import pathlib
from typing import Any

from experiments.distill_then_replace import usage
from hybridlm.errors import RunError
from hybridlm.runs.json_files import read_json, write_json
from hybridlm.settings import json_text

FILE = "settings.json"


def keep(workdir: pathlib.Path, teacher: pathlib.Path, stages: dict[str, Any]) -> None:
    """Writes the settings into a workdir without results, and compares them with those of a used one.

    Args:
      workdir: an existing folder; what is in it besides the lines of usage.py counts as results.
      teacher: the checkpoint; it is written relative to the workdir, so that both can be moved.
      stages: settings by name, of any depth, of values that JSON has.

    Raises:
      RunError: if the workdir was used with other settings, or it cannot be known with which.
    """
    path = os.path.relpath(teacher.resolve(), workdir.resolve())
    given = json_text.loads(json_text.dumps({"teacher": path, **stages}))
    file = workdir / FILE
    if {x.name for x in workdir.iterdir()} <= {FILE, usage.FILE}:  # empty, or an import that failed
        write_json(file, given)
        return
    if not file.exists():
        raise RunError(
            f"{workdir} is not empty and has no {FILE}, so it is unknown with which teacher and"
            " settings its results were made: give another --workdir"
        )
    kept, now = _flat(read_json(file)), _flat(given)
    for name in (*kept, *now):
        old, new = (json_text.dumps(x[name]) if name in x else "not set" for x in (kept, now))
        if old != new:
            raise RunError(
                f"the results in {workdir} were made with {name} {old}, which is now {new}:"
                " put it back, or give another --workdir"
            )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """The values in nested objects, by their dotted names; an empty object is a value."""
    if not isinstance(value, dict) or (name and not value):
        return {name: value}
    dot = f"{name}." if name else ""
    return {k: v for key, x in value.items() for k, v in _flat(x, f"{dot}{key}").items()}
