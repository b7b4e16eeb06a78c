"""A compiled step on disk: the executable for machines with the chips, and its report."""

import json
import pathlib
import pickle
from typing import Any

import jax
from jax.experimental import serialize_executable

from hybridlm.errors import RunError

STEP, REPORT = "step.pickle", "report.json"


def save(folder: pathlib.Path, report: dict[str, Any], step: jax.stages.Compiled | None) -> None:
    """Writes `REPORT`, and `STEP` if the step compiled.

    Raises:
      RunError: if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if step is not None:
            versions = {"jax": jax.__version__}
            parts = serialize_executable.serialize(step)
            (folder / STEP).write_bytes(pickle.dumps((versions, parts)))
        (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise RunError(f"--out {folder} cannot be written: {error}") from error


def load(folder: pathlib.Path, backend: str | None = None) -> jax.stages.Compiled:
    """Loads the step that `save` wrote; this process must have the devices that it is for.

    The file is a pickle: load only files that you wrote.

    Raises:
      RunError: if there is no step, or another version of jax wrote it.
    """
    path = folder / STEP
    if not path.exists():
        raise RunError(f"{folder} holds no {STEP}: `hybridlm compile --out` writes one")
    versions, parts = pickle.loads(path.read_bytes())
    if versions["jax"] != jax.__version__:
        raise RunError(
            f"{path} was written by jax {versions['jax']}, and this is jax {jax.__version__}"
        )
    return serialize_executable.deserialize_and_load(*parts, backend=backend)
