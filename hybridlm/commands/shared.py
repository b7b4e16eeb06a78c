"""What several commands share: which model they open, where results go, lists for help."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Protocol

from hybridlm.errors import UserError


class Described(Protocol):
    """An entry of a registry."""

    name: str
    help: str


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """Which model.

    Attributes:
      workdir: folder of a run, or a model folder.
      step: checkpoint; the newest by default.
    """

    workdir: pathlib.Path
    step: int | None = None


@dataclasses.dataclass(frozen=True)
class OutputSettings:
    """Where results go.

    Attributes:
      out: folder to write.
    """

    out: pathlib.Path


def make_folder(out: pathlib.Path) -> pathlib.Path:
    """Makes the folder of results.

    Raises:
      UserError: where it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from None
    return out


def listed(title: str, entries: Iterable[Described]) -> str:
    """Entries of a registry, for help: a line each."""
    entries = list(entries)
    width = max(len(entry.name) for entry in entries)
    lines = (f"  {entry.name:<{width}}  {entry.help.replace('`', '')}" for entry in entries)
    return "\n".join([f"{title}:", *lines])
