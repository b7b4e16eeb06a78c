"""The job on a SLURM node: it starts the run as a child process and tells it to save in time.

The node imports this module before the run starts, so its imports are few.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from hybridlm.errors import TRY_AGAIN

# SLURM signals every process of a job. SIGUSR2 is meant for submitit and would kill the run.
_IGNORE_USR2 = ("sh", "-c", 'trap "" USR2; exec "$@"', "sh")


class RunFailed(Exception):
    """The run exited with a code other than 0, and restarting it would not help."""


class RunJob:
    """A job that submitit calls on the node; when called again it continues the run."""

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str], folder: str):
        self.name, self.argv, self.env, self.folder = name, tuple(argv), dict(env), folder
        self._process: subprocess.Popen | None = None
        self._terminated = False  # SLURM sent SIGTERM; the run would exit unsaved at a second one

    def __call__(self) -> None:
        """Trains the run to its end.

        Raises:
          RunFailed: if the run fails, or was stopped and SLURM does not restart it.
        """
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self._process = subprocess.Popen(
            [*_IGNORE_USR2, *self.argv], cwd=self.folder, env={**os.environ, **self.env}
        )
        _wait_for_exit(self._process.pid)
        code = self._process.wait()
        if code == TRY_AGAIN:
            self._requeue()
        if code:
            raise RunFailed(f"run {self.name} ended with exit code {code}")

    def checkpoint(self) -> Any:
        """Tells the run to save, waits for its exit, and returns the same job to be requeued.

        submitit calls this in its signal handler, on preemption and before the time limit.
        """
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            if not self._terminated:
                os.kill(self._process.pid, signal.SIGTERM)
            _wait_for_exit(self._process.pid)
        return DelayedSubmission(RunJob(self.name, self.argv, self.env, self.folder))

    __submitit_checkpoint__ = checkpoint  # submitit 1.5 needs both names

    def _on_sigterm(self, number: int, _: FrameType | None) -> None:
        self._terminated = True

    def _requeue(self) -> None:
        """Requeues the job of a run that was stopped, but not by submitit.

        A job whose state is no longer RUNNING was cancelled, or SLURM requeues it.
        """
        from submitit import JobEnvironment

        job = JobEnvironment()
        if job.global_rank:
            return  # only the job's first process requeues it
        state = subprocess.run(
            ["squeue", "--noheader", "--jobs", job.job_id, "--format", "%T"],
            capture_output=True,
            text=True,
        )
        if state.stdout.strip() == "RUNNING":
            subprocess.run(["scontrol", "requeue", job.job_id], check=True)
            sys.exit(TRY_AGAIN)


def _wait_for_exit(pid: int) -> None:
    """Waits for the exit of a child without reading its exit code.

    Unlike `Popen.wait`, it can be called in a signal handler that interrupts another such call.
    """
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        pass
