"""Runs of a sweep as SkyPilot managed jobs, which continue elsewhere after a preemption."""

import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from hybridlm.errors import TRY_AGAIN
from hybridlm.storage import open_path, own_name
from hybridlm.sweep.names import dns_label
from launch.job import Job, files_folder
from launch.site import SkySite
from launch.submission import Submission, submit_all

_MAX_NAME_LENGTH = 60


class SkyLauncher:
    """Writes the task of each job as YAML and launches it with `sky jobs launch`."""

    confirms = True

    def __init__(self, site: SkySite):
        self._site = site

    def preview(self, jobs: Sequence[Job], root: pathlib.Path) -> str:
        task = self.task(jobs[0], root)
        return (
            f"by SkyPilot, from tasks written to {files_folder(root) / 'sky'}; the first:\n{task}"
        )

    def submit(self, jobs: Sequence[Job], root: pathlib.Path) -> int:
        files = {f"{job.name}.yaml": self.task(job, root) for job in jobs}
        commands = [
            Submission(
                job.name,
                (
                    "sky",
                    "jobs",
                    "launch",
                    "--yes",
                    "--detach-run",
                    str(files_folder(root) / "sky" / f"{job.name}.yaml"),
                ),
            )
            for job in jobs
        ]
        return submit_all("sky", "uv tool install skypilot", commands, files, root)

    def task(self, job: Job, root: pathlib.Path) -> str:
        """The YAML of a job's task."""
        site = self._site
        arguments = job.arguments(open_path(site.root))
        run = ["exec", *shlex.split(site.program), *arguments]
        recovery = {
            "max_restarts_on_errors": site.max_restarts,
            "recover_on_exit_codes": [TRY_AGAIN],
        }
        resources = {
            "infra": site.infra,
            "accelerators": site.accelerators,
            "image_id": site.image_id,
            "disk_size": site.disk_size,
            "use_spot": site.spot,
            "job_recovery": recovery,
        }
        task = {
            "name": dns_label(f"{own_name(root)}-{job.name}", _MAX_NAME_LENGTH),
            "num_nodes": site.num_nodes,
            "workdir": site.workdir,
            "resources": {k: v for k, v in resources.items() if v is not None},
            "file_mounts": {path: _mount(source) for path, source in site.file_mounts.items()},
            "envs": dict(site.env),
            "setup": "".join(f"{line}\n" for line in site.setup),
            "run": shlex.join(run) + "\n",
        }
        given = {k: v for k, v in task.items() if v not in (None, {}, "")}
        return yaml.dump(given, Dumper=_Dumper, sort_keys=False, width=10**6)


def _mount(source: str) -> Any:
    """Mounts a bucket, so that a run's files outlive its machine; copies a local path."""
    return {"source": source, "mode": "MOUNT"} if "://" in source else source


class _Dumper(yaml.SafeDumper):
    """Writes text that ends in a newline as a block scalar."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if text.endswith("\n") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
