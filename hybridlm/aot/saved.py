"""A compiled step on disk: the executable for where the chips are, and a report beside it."""

import json
import pathlib
import pickle
from typing import Any

import jax
from jax.experimental import serialize_executable

from hybridlm.errors import RunError

STEP, REPORT = "step.pickle", "report.json"


def save(folder: pathlib.Path, report: dict[str, Any], step: jax.stages.Compiled | None) -> None:
    """Writes `REPORT`, and `STEP` where there is a step.

    Raises:
      RunError: where the folder cannot be written.
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
    """The step that `save` wrote, on the devices of this process, which must be those it is for.

    It is a pickle: load only what you wrote yourself.

    Raises:
      RunError: where there is none, or another jax wrote it.
    """
    path = folder / STEP
    if not path.exists():
        raise RunError(f"{folder} holds no {STEP}: `hybridlm compile --out` writes one")
    versions, parts = pickle.loads(path.read_bytes())
    if versions["jax"] != jax.__version__:
        raise RunError(f"{path} is of jax {versions['jax']}, and this is jax {jax.__version__}")
    return serialize_executable.deserialize_and_load(*parts, backend=backend)
