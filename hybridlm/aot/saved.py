"""A compiled step on disk: the executable for machines with the chips, and its report."""

import pathlib
import pickle
from typing import Any

import jax
from jax.experimental import serialize_executable

from hybridlm.errors import RunError
from hybridlm.settings import json_text
from hybridlm.storage.writing import make_folder, write_bytes, write_text

STEP, REPORT = "step.pickle", "report.json"


def save(folder: pathlib.Path, report: dict[str, Any], step: jax.stages.Compiled | None) -> None:
    """Writes `REPORT`, and `STEP` if the step compiled.

    Raises:
      WriteError: if the folder cannot be written.
    """
    make_folder(folder)
    if step is not None:
        versions = {"jax": jax.__version__}
        parts = serialize_executable.serialize(step)
        write_bytes(folder / STEP, pickle.dumps((versions, parts)))
    write_text(folder / REPORT, json_text.dumps(report, indent=2) + "\n")


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
