"""Jobs: runs to start, with their command-line arguments and workdirs."""

import dataclasses
import hashlib
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Protocol

from hybridlm.storage import is_remote
from hybridlm.storage.local_copies import cache_folder
from hybridlm.sweep import PlannedRun

# The current interpreter, for this machine and for machines that share its files.
PROGRAM = (sys.executable, "-m", "hybridlm.cli")


@dataclasses.dataclass(frozen=True)
class Job:
    """A run to start or continue.

    Attributes:
      planned: the run with its costs and progress.
      spec: its recipe, as for `--config`.
    """

    planned: PlannedRun
    spec: str

    @property
    def name(self) -> str:
        return self.planned.run.name

    @property
    def steps(self) -> int:
        return self.planned.run.config.train.steps

    def workdir(self, root: pathlib.PurePath) -> pathlib.PurePath:
        return root / self.name

    def arguments(self, root: pathlib.PurePath) -> list[str]:
        """The arguments of `hybridlm` that train the run in `root`, a path on the job's machine.

        Runs of a sweep that read the same raw text share its tokens in `root`/tokens.
        """
        run = self.planned.run
        arguments = ["train", "--config", self.spec, "--workdir", str(self.workdir(root))]
        arguments += [f"--config.{key}={text}" for key, text in run.overrides]
        if run.config.data.token_cache is None:
            arguments.append(f"--config.data.token_cache={root / 'tokens'}")
        return arguments


def files_folder(root: pathlib.Path) -> pathlib.Path:
    """The folder for a launcher's logs, locks and records: `root`, or for a root in a bucket one of
    this user's cache.
    """
    if not is_remote(root):
        return root
    name = hashlib.sha256(os.fspath(root).encode()).hexdigest()[:12]
    return cache_folder().parent / "sweeps" / f"{root.name}-{name}"


class Launcher(Protocol):
    """Starts jobs; renders only a command and an environment from each `Job`.

    Attributes:
      confirms: whether to ask for confirmation at a terminal before jobs are started.
    """

    confirms: bool

    def preview(self, jobs: Sequence[Job], root: pathlib.Path) -> str:
        """A description of the jobs that `submit` would start; has no side effects."""

    def submit(self, jobs: Sequence[Job], root: pathlib.Path) -> int:
        """Starts the jobs; returns the exit code of the command.

        Raises:
          UserError: if they cannot be started.
        """


def child_environment(extra: dict[str, str]) -> dict[str, str]:
    """This process's environment and `extra`, with a PYTHONPATH to this hybridlm for `PROGRAM`."""
    repository = str(pathlib.Path(__file__).resolve().parent.parent)
    path = os.environ.get("PYTHONPATH", "")
    paths = [repository, *(p for p in path.split(os.pathsep) if p and p != repository)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **extra}
