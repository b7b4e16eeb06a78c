"""The progress of the run in a workdir, read from its files; the run may be active."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

from hybridlm.runs import checkpoint, metrics
from hybridlm.runs.workdir import CONFIG, REPORT, check_same_run
from hybridlm.storage import is_remote, objects
from hybridlm.train.settings import Config, run_settings

_TAIL = 1 << 16  # bytes at the end of a record file that contain the newest records


@dataclasses.dataclass(frozen=True)
class RunProgress:
    """The progress of a run.

    Attributes:
      state: "new" (no step was trained), "unfinished" or "finished" (with report).
      step: the newest recorded step, 0 for none.
      loss: the newest training loss in nats, None if there is none yet.
      heldout: the newest held-out loss in nats, None if there is none yet.
    """

    state: Literal["new", "unfinished", "finished"]
    step: int = 0
    loss: float | None = None
    heldout: float | None = None


def run_progress(workdir: pathlib.Path, config: Config) -> RunProgress:
    """The progress of the run of `config` in `workdir`.

    Raises:
      RunError: if `workdir` holds a run of another config.
    """
    if not (workdir / CONFIG).exists():
        return RunProgress("new")
    check_same_run(workdir, run_settings(config))
    progress = newest_progress(workdir)
    saved = checkpoint.steps(workdir)
    finished = bool(saved) and saved[-1] >= config.train.steps and (workdir / REPORT).exists()
    return dataclasses.replace(progress, state="finished" if finished else "unfinished")


def newest_progress(workdir: pathlib.Path) -> RunProgress:
    """Step and losses of the newest records; safe while the run writes them."""
    latest: dict[str, dict[str, Any]] = {}
    for record in _tail(workdir / metrics.FILE):
        latest[record.get("kind")] = record
    train, heldout = latest.get("train", {}), latest.get("eval", {})
    return RunProgress(
        "unfinished" if latest else "new",
        max((r.get("step", 0) for r in (train, heldout)), default=0),
        train.get("loss"),
        heldout.get("loss"),
    )


def _tail(path: pathlib.Path) -> list[dict[str, Any]]:
    """The newest complete records of a JSON Lines file, oldest first."""
    if is_remote(path):
        data = objects.read(path) or b""
        size, lines = len(data), data[-_TAIL:].split(b"\n")
        return _records(lines[0 if size <= _TAIL else 1 : -1])
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    return _records(lines[0 if size <= _TAIL else 1 : -1])


def _records(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    records = []
    for line in lines:
        try:
            records.append(metrics.parse(line))
        except (ValueError, RecursionError):
            continue  # the run itself reports a damaged line when it starts
    return [record for record in records if isinstance(record, dict)]
