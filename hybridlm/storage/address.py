"""PATH and PATH@STEP: how a user names a run, or one of its checkpoints."""

import pathlib

from hybridlm.errors import UserError
from hybridlm.storage import is_remote, open_path


def split_step(text: pathlib.Path | str) -> tuple[str, int | None]:
    """(path, step) of PATH or PATH@STEP; a folder's own name may have an "@".

    Raises:
      UserError: if PATH is a folder of this machine, and what stands after it is no step.
    """
    text = str(text)
    path, at, step = text.rpartition("@")
    here = not is_remote(text)
    if not at or (here and open_path(text).is_dir()):
        return text, None
    if step.isdecimal():
        return path, int(step)
    if path and here and open_path(path).is_dir():
        raise UserError(
            f"{text}: after '@' stands the step of a checkpoint, as in {path}@12000, or leave out '@{step}'"
        )
    return text, None
