"""What the adapters of command-line tools share: files and a script are written, then it is run."""

import dataclasses
import json
import pathlib
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from hybridlm.errors import UserError
from hybridlm.runs.json_files import write_json


@dataclasses.dataclass(frozen=True)
class Submission:
    """A job, and the words of the command that submits it."""

    name: str
    command: tuple[str, ...]


def submit_all(
    tool: str,
    install: str,
    submissions: Sequence[Submission],
    files: Mapping[str, str],
    root: pathlib.Path,
) -> int:
    """Writes `files` and `submit.sh` into `root`/TOOL, and runs the commands that were not run yet.

    Which runs were submitted is kept in `root`/TOOL.json: these tools do not say it, and two jobs
    of one run would spoil its checkpoints.

    Args:
      tool: program that the commands begin with.
      install: how to get it, for the sentence that says that it is missing.
      submissions: all of them.
      files: text by file name.

    Returns:
      0, or 1 where the tool refused some.

    Raises:
      UserError: where the tool is not here; the files are written then.
    """
    folder = root / tool
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    script = folder / "submit.sh"
    record_path = root / f"{tool}.json"
    record = read_record(record_path)
    for submission in submissions:
        if submission.name in record:
            print(
                f"{submission.name}: submitted at {record[submission.name]}; if {tool} has it no"
                f" more, take it out of {record_path} and submit again"
            )
    wanted = [s for s in submissions if s.name not in record]
    lines = [f"# {s.name}\n{shlex.join(s.command)}\n" for s in wanted]
    script.write_text("#!/bin/sh\nset -e\n\n" + "\n".join(lines), encoding="utf-8")
    if not wanted:
        return 0
    if shutil.which(tool) is None:
        raise UserError(
            f"{tool} is not on this machine: {install}, or run `sh {script}` where it is; the files"
            f" of {len(wanted)} runs are in {folder}"
        )
    refused = []
    for submission in wanted:
        print(f"{submission.name}: {shlex.join(submission.command)}", flush=True)
        code = subprocess.run(submission.command).returncode
        if code:
            refused.append(f"hybridlm: {tool} refused run {submission.name} (exit code {code})")
            continue
        record[submission.name] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        write_json(record_path, record)
    for sentence in refused:
        print(sentence, file=sys.stderr)
    return 1 if refused else 0


def read_record(path: pathlib.Path) -> dict[str, str]:
    """What was submitted before, by run name; nothing where there is no such file.

    Raises:
      UserError: where it is damaged.
    """
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(
            f"{path}, which says what was submitted, is damaged ({error}): mend it, or remove it"
            " once none of it is queued or running"
        ) from None
