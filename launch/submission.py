"""Submission by command-line tools: writes files and a script, then runs the commands."""

import dataclasses
import pathlib
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from hybridlm.errors import UserError
from hybridlm.runs.json_files import write_json
from hybridlm.settings import json_text
from hybridlm.storage.writing import make_folder, write_text
from launch.job import files_folder


@dataclasses.dataclass(frozen=True)
class Submission:
    """The name of a job and the command that submits it."""

    name: str
    command: tuple[str, ...]


def submit_all(
    tool: str,
    install: str,
    submissions: Sequence[Submission],
    files: Mapping[str, str],
    root: pathlib.Path,
) -> int:
    """Writes `files` and `submit.sh` into `root`/TOOL and runs the commands that were not run yet.

    `root`/TOOL.json records the submitted runs. The tools do not report them, and two jobs of one
    run would corrupt its checkpoints.

    Args:
      tool: the program that the commands call.
      install: how to install the tool, for the error if it is missing.
      submissions: all jobs, submitted earlier or not.
      files: text by file name.
      root: the sweep's root.

    Returns:
      0, or 1 if the tool refused a job.

    Raises:
      UserError: if the tool is not installed; the files are written nevertheless.
    """
    folder = files_folder(root) / tool
    make_folder(folder)
    for name, text in files.items():
        write_text(folder / name, text)
    script = folder / "submit.sh"
    record_path = files_folder(root) / f"{tool}.json"
    record = read_record(record_path)
    for submission in submissions:
        if submission.name in record:
            print(
                f"{submission.name}: submitted at {record[submission.name]}; if {tool} no longer"
                f" has it, remove it from {record_path} and submit again"
            )
    new = [s for s in submissions if s.name not in record]
    lines = [f"# {s.name}\n{shlex.join(s.command)}\n" for s in new]
    write_text(script, "#!/bin/sh\nset -e\n\n" + "\n".join(lines))
    if not new:
        return 0
    if shutil.which(tool) is None:
        raise UserError(
            f"{tool} is not on this machine: {install}, or run `sh {script}` on one that has it; the"
            f" files of {len(new)} runs are in {folder}"
        )
    refused = []
    for submission in new:
        print(f"{submission.name}: {shlex.join(submission.command)}", flush=True)
        code = subprocess.run(submission.command).returncode
        if code:
            refused.append(f"hybridlm: {tool} refused run {submission.name} (exit code {code})")
            continue
        record[submission.name] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        write_json(record_path, record)
    for message in refused:
        print(message, file=sys.stderr)
    return 1 if refused else 0


def read_record(path: pathlib.Path) -> dict[str, str]:
    """The record of submitted runs, by run name; empty if there is no such file.

    Raises:
      UserError: if the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        return json_text.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}, the record of submitted runs, is damaged ({error}): repair it, or remove it"
            " once no run is queued or running"
        ) from None
