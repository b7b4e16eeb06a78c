"""How far the run in a workdir is, read from its files while it may be running."""

import dataclasses
import json
import os
import pathlib
from typing import Any, Literal

from hybridlm.runs import checkpoint, metrics
from hybridlm.runs.workdir import CONFIG, REPORT, check_same_run
from hybridlm.train.settings import Config, run_settings

_TAIL = 1 << 16  # bytes that hold the newest records of any run


@dataclasses.dataclass(frozen=True)
class RunProgress:
    """What a workdir says of its run.

    Attributes:
      state: "new" (nothing was trained), "unfinished" or "finished" (report included).
      step: the newest step on record, 0 for none.
      loss: the newest training loss in nats, None before the first.
      heldout: the newest held-out loss in nats, None before the first.
    """

    state: Literal["new", "unfinished", "finished"]
    step: int = 0
    loss: float | None = None
    heldout: float | None = None


def progress(workdir: pathlib.Path, config: Config) -> RunProgress:
    """How far the run of `config` in `workdir` is.

    Raises:
      RunError: where another config's run lies there.
    """
    if not (workdir / CONFIG).exists():
        return RunProgress("new")
    check_same_run(workdir, run_settings(config))
    found = newest(workdir)
    saved = checkpoint.steps(workdir)
    whole = bool(saved) and saved[-1] >= config.train.steps and (workdir / REPORT).exists()
    return dataclasses.replace(found, state="finished" if whole else "unfinished")


def newest(workdir: pathlib.Path) -> RunProgress:
    """Step and losses of the newest records: a glance, which a run being written stands."""
    latest: dict[str, dict[str, Any]] = {}
    for record in _tail(workdir / metrics.FILE):
        latest[record.get("kind")] = record
    train, heldout = latest.get("train", {}), latest.get("eval", {})
    return RunProgress(
        "unfinished" if latest else "new",
        max((r.get("step", 0) for r in (train, heldout)), default=0),
        _number(train.get("loss")),
        _number(heldout.get("loss")),
    )


def _tail(path: pathlib.Path) -> list[dict[str, Any]]:
    """The newest whole records of a file of JSON lines, oldest first."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    records = []
    for line in lines[0 if size <= _TAIL else 1 : -1]:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue  # a glance is no place to complain: the run's own start will
    return [record for record in records if isinstance(record, dict)]


def _number(value: Any) -> float | None:
    """A loss of the record; "nan" and "inf" are text there."""
    return None if value is None else float(value)
