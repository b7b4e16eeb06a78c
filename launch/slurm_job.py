"""What runs on a SLURM node: a run as a child process, asked to save when its job must end.

Imported on the node before the run starts, so it imports little.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from hybridlm.errors import TRY_AGAIN

# SLURM signals every process of a job. SIGUSR2 is submitit's, and would kill the run.
_SHIELD = ("sh", "-c", 'trap "" USR2; exec "$@"', "sh")


class RunFailed(Exception):
    """The run ended with an exit code that another start would not change."""


class RunJob:
    """Called by submitit on the node; may be called again there, and the run goes on."""

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str], folder: str):
        self.name, self.argv, self.env, self.folder = name, tuple(argv), dict(env), folder
        self._process: subprocess.Popen | None = None
        self._told = False  # the run got SLURM's own SIGTERM; a second one would stop it at once

    def __call__(self) -> None:
        """Runs to the end.

        Raises:
          RunFailed: where the run does, or was stopped and SLURM does not start it again.
        """
        signal.signal(signal.SIGTERM, self._hear)
        self._process = subprocess.Popen(
            [*_SHIELD, *self.argv], cwd=self.folder, env={**os.environ, **self.env}
        )
        _await(self._process.pid)
        code = self._process.wait()
        if code == TRY_AGAIN:
            self._requeue()
        if code:
            raise RunFailed(f"run {self.name} ended with exit code {code}")

    def checkpoint(self) -> Any:
        """Asks the run to save, waits for it, and says what to queue: the same once more.

        submitit calls this in its signal handler, at a preemption and before the time limit.
        """
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            if not self._told:
                os.kill(self._process.pid, signal.SIGTERM)
            _await(self._process.pid)
        return DelayedSubmission(RunJob(self.name, self.argv, self.env, self.folder))

    __submitit_checkpoint__ = checkpoint  # submitit 1.5 asks for both names

    def _hear(self, number: int, _: FrameType | None) -> None:
        self._told = True

    def _requeue(self) -> None:
        """Queues the job of a run that was told to stop by something else than submitit.

        A job that is not running any more was cancelled by a person, or SLURM queues it itself.
        """
        from submitit import JobEnvironment

        job = JobEnvironment()
        if job.global_rank:
            return  # the first of the job's processes speaks for all
        asked = subprocess.run(
            ["squeue", "--noheader", "--jobs", job.job_id, "--format", "%T"],
            capture_output=True,
            text=True,
        )
        if asked.stdout.strip() == "RUNNING":
            subprocess.run(["scontrol", "requeue", job.job_id], check=True)
            sys.exit(TRY_AGAIN)


def _await(pid: int) -> None:
    """Returns when a child has ended, and leaves its exit code to be read.

    Unlike `Popen.wait`, it may be called in a signal handler that interrupts another such call.
    """
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        pass
