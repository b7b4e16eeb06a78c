"""Runs of a sweep as xpk workloads: JobSets on the TPU slices of a GKE cluster."""

import pathlib
import shlex
from collections.abc import Sequence

from hybridlm.errors import TRY_AGAIN
from hybridlm.storage import open_path, own_name
from hybridlm.sweep.names import dns_label
from launch.job import Job, files_folder
from launch.site import XpkSite
from launch.submission import Submission, submit_all

_MAX_NAME_LENGTH = 40  # xpk's limit


class XpkLauncher:
    """Renders an `xpk workload create` command for each job and runs it."""

    confirms = True

    def __init__(self, site: XpkSite):
        self._site = site

    def preview(self, jobs: Sequence[Job], root: pathlib.Path) -> str:
        command = shlex.join(self.command(jobs[0], root))
        return f"on GKE, by commands written to {files_folder(root) / 'xpk'}; the first:\n{command}"

    def submit(self, jobs: Sequence[Job], root: pathlib.Path) -> int:
        commands = [Submission(job.name, self.command(job, root)) for job in jobs]
        return submit_all("xpk", "pip install xpk", commands, {}, root)

    def command(self, job: Job, root: pathlib.Path) -> tuple[str, ...]:
        """The command that creates a job's workload; the same run always gets the same name."""
        site = self._site
        # exec: xpk signals the shell that it starts, and the signal must reach the run.
        arguments = job.arguments(open_path(site.root))
        run = ["exec", *shlex.split(site.program), *arguments]
        options = {
            "workload": dns_label(f"{own_name(root)}-{job.name}", _MAX_NAME_LENGTH),
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
        command = f"--command={shlex.join(run)}"
        return ("xpk", "workload", "create", *given, *site.extra_args, command)
