"""PATH and PATH@STEP: how a user names a run, or one of its checkpoints."""

import pathlib

from hybridlm.storage import is_remote, open_path


def split_step(text: pathlib.Path | str) -> tuple[str, int | None]:
    """(path, step) of PATH or PATH@STEP; a folder's own name may have an "@"."""
    text = str(text)
    path, at, step = text.rpartition("@")
    if not at or not step.isdecimal() or (not is_remote(text) and open_path(text).is_dir()):
        return text, None
    return path, int(step)
