"""Runs of a sweep as xpk workloads: JobSets on the TPU slices of a GKE cluster."""

import pathlib
import shlex
from collections.abc import Sequence

from hybridlm.errors import TRY_AGAIN
from hybridlm.sweep.names import label
from launch.job import Job
from launch.site import XpkSite
from launch.submission import Submission, submit_all

_LONGEST_NAME = 40  # that xpk takes


class Xpk:
    """Renders an `xpk workload create` for each job, and runs it."""

    confirms = True

    def __init__(self, site: XpkSite):
        self._site = site

    def preview(self, jobs: Sequence[Job], root: pathlib.Path) -> str:
        command = shlex.join(self.command(jobs[0], root))
        return f"on GKE, by commands that will be in {root / 'xpk'}; the first one:\n{command}"

    def submit(self, jobs: Sequence[Job], root: pathlib.Path) -> int:
        commands = [Submission(job.name, self.command(job, root)) for job in jobs]
        return submit_all("xpk", "pip install xpk", commands, {}, root)

    def command(self, job: Job, root: pathlib.Path) -> tuple[str, ...]:
        """The words that create the workload of a job; its name is stable, so none is made twice."""
        site = self._site
        # exec: xpk signals the shell that it starts, and the run must hear it to save.
        words = ["exec", *shlex.split(site.program), *job.words(pathlib.PurePosixPath(site.root))]
        options = {
            "workload": label(f"{root.absolute().name}-{job.name}", _LONGEST_NAME),
            "cluster": site.cluster,
            "project": site.project,
            "zone": site.zone,
            "tpu-type": site.tpu_type,
            "num-slices": site.num_slices,
            "docker-image": site.docker_image,
            "base-docker-image": site.base_docker_image,
            "script-dir": site.script_dir,
            "priority": site.priority,
            "max-restarts": site.max_restarts,
            "restart-on-exit-codes": TRY_AGAIN,
            "termination-grace-period-seconds": site.grace_seconds,
        }
        given = [f"--{name}={value}" for name, value in options.items() if value is not None]
        given += [f"--env={name}={value}" for name, value in site.env.items()]
        command = f"--command={shlex.join(words)}"
        return ("xpk", "workload", "create", *given, *site.extra_args, command)
