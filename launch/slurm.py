"""Runs of a sweep as a SLURM job array, through submitit.

When a job is preempted or reaches its time limit, its run saves and the job is requeued.
"""

import pathlib
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from hybridlm.errors import UserError
from hybridlm.progress import doing
from hybridlm.runs.json_files import write_json
from hybridlm.storage import absolute
from hybridlm.storage.writing import make_folder
from launch.job import PROGRAM, Job, child_environment, files_folder
from launch.site import SlurmSite
from launch.slurm_job import RunJob
from launch.submission import read_record

FOLDER, RECORD = "slurm", "slurm.json"

_SAME_NAME = (
    "partition",
    "account",
    "qos",
    "nodes",
    "gpus_per_node",
    "cpus_per_task",
    "constraint",
    "exclude",
    "signal_delay_s",
)


class SlurmLauncher:
    """Submits jobs to SLURM, of which at most `parallel` run concurrently."""

    confirms = True

    def __init__(self, site: SlurmSite, parallel: int):
        self._site, self._parallel = site, parallel
        try:
            import submitit
        except ModuleNotFoundError:
            raise UserError("--to slurm needs submitit: pip install 'hybridlm[launch]'") from None
        self._submitit = submitit

    def preview(self, jobs: Sequence[Job], root: pathlib.Path) -> str:
        settings = " ".join(f"{k}={v}" for k, v in self.parameters().items() if k != "setup")
        command = shlex.join([*PROGRAM, *jobs[0].arguments(absolute(root))])
        return (
            f"on SLURM, as a job array with logs in {files_folder(root) / FOLDER}: {settings}\nthe first:\n"
            f"{command}"
        )

    def parameters(self) -> dict[str, Any]:
        """The parameters of submitit's `SlurmExecutor`."""
        site = self._site
        given = {name: getattr(site, name) for name in _SAME_NAME}
        given["time"] = site.timeout_min
        given["mem"] = None if site.mem_gb is None else f"{round(site.mem_gb * 1024)}MB"
        given["ntasks_per_node"] = 1  # one process drives all devices of its node
        given["array_parallelism"] = self._parallel
        given["additional_parameters"] = dict(site.additional_parameters) or None
        path = child_environment({})["PYTHONPATH"]
        given["setup"] = [f"export PYTHONPATH={shlex.quote(path)}", *site.setup]
        return {name: value for name, value in given.items() if value is not None}

    def submit(self, jobs: Sequence[Job], root: pathlib.Path) -> int:
        """Submits the jobs that are not queued yet; returns 0."""
        for tool in ("sbatch", "srun", "squeue"):
            if shutil.which(tool) is None:
                raise UserError(
                    f"--to slurm needs {tool}, which is not on this machine: submit from a login"
                    " node of the cluster"
                )
        root = absolute(root)
        records = files_folder(root) / RECORD
        record = read_record(records)
        with doing("asking SLURM which jobs it has"):
            queued = _queue()
        new = []
        for job in jobs:
            number = record.get(job.name)
            if number in queued:
                print(f"{job.name}: already job {number} ({queued[number]})")
            else:
                new.append(job)
        if new:
            for job, number in zip(new, self._submit(new, root)):
                print(f"{job.name}: job {number}")
                record[job.name] = number
            make_folder(records.parent)
            write_json(records, record)
            print(
                f"submitted {len(new)}; `squeue --me` shows them, `scancel JOB` stops one, and the"
                " same command submits runs that are neither queued nor finished"
            )
        return 0

    def _submit(self, jobs: Sequence[Job], root: pathlib.Path) -> list[str]:
        """Submits jobs; returns their SLURM job numbers, in order."""
        errors = self._submitit.core.utils
        executor = self._submitit.SlurmExecutor(
            folder=files_folder(root) / FOLDER / "%j", max_num_timeout=self._site.max_num_timeout
        )
        folder = str(pathlib.Path.cwd())
        calls = [
            RunJob(job.name, [*PROGRAM, *job.arguments(root)], self._site.env, folder)
            for job in jobs
        ]
        try:
            executor.update_parameters(job_name=f"hybridlm-{root.name}", **self.parameters())
            with doing(f"submitting {len(calls)} jobs to SLURM"), executor.batch():
                submitted = [executor.submit(call) for call in calls]
        except (errors.FailedJobError, errors.FailedSubmissionError, ValueError) as error:
            lines = [line.strip() for line in str(error).splitlines() if "error" in line.lower()]
            reason = (lines or [" ".join(str(error).split())])[0]
            raise UserError(f"SLURM refused the jobs: {reason}") from None
        return [job.job_id for job in submitted]


def _queue() -> dict[str, str]:
    """The states, by job number, of this user's jobs that are queued or running."""
    command = ["squeue", "--me", "--noheader", "--array", "--format", "%i %T"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"SLURM does not answer: {result.stderr.strip().splitlines()[-1]}")
    return dict(line.split() for line in result.stdout.splitlines() if line.strip())
