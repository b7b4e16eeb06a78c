"""A run as something to start: words for `hybridlm`, and where it works."""

import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Protocol

from hybridlm.sweep import Planned

# On this machine, and on others that see its files: the interpreter that reads this.
PROGRAM = (sys.executable, "-m", "hybridlm.cli")


@dataclasses.dataclass(frozen=True)
class Job:
    """One run to start or to go on with.

    Attributes:
      planned: the run, its costs, and how far it is.
      spec: its recipe, as `--config` takes it.
    """

    planned: Planned
    spec: str

    @property
    def name(self) -> str:
        return self.planned.run.name

    @property
    def steps(self) -> int:
        return self.planned.run.config.train.steps

    def workdir(self, root: pathlib.PurePath) -> pathlib.PurePath:
        return root / self.name

    def words(self, root: pathlib.PurePath) -> list[str]:
        """What follows the program's name to train in `root` as the job's machine sees it.

        Runs of a sweep that read the same raw text share its tokens, in `root`/tokens.
        """
        run = self.planned.run
        words = ["train", "--config", self.spec, "--workdir", str(self.workdir(root))]
        words += [f"--config.{key}={text}" for key, text in run.overrides]
        if run.config.data.token_cache is None:
            words.append(f"--config.data.token_cache={root / 'tokens'}")
        return words


class Launcher(Protocol):
    """Starts jobs somewhere. It only renders words and an environment: what a run is, `Job` says.

    Attributes:
      confirms: whether a person at a terminal is asked before anything is started.
    """

    confirms: bool

    def preview(self, jobs: Sequence[Job], root: pathlib.Path) -> str:
        """What would be started, for a person to read; changes nothing anywhere."""

    def submit(self, jobs: Sequence[Job], root: pathlib.Path) -> int:
        """Starts the jobs; returns the exit code of the command.

        Raises:
          UserError: where they cannot be started.
        """


def child_environment(extra: dict[str, str]) -> dict[str, str]:
    """This process's environment, `extra`, and a path on which `PROGRAM` finds this hybridlm."""
    here = str(pathlib.Path(__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH", "")
    known = [here, *(p for p in path.split(os.pathsep) if p and p != here)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(known), **extra}
