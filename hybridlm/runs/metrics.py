"""Writes a run's metrics to `metrics.jsonl`, TensorBoard and, optionally, Weights & Biases.

`metrics.jsonl` is the complete record: one JSON object per line with `kind` ("train", "eval",
"run", "sample") and `step`. On resume, records after the checkpoint's step are dropped and computed
again, so a killed run ends with the same lines as an uninterrupted one, except for times.
"""

import contextlib
import math
import pathlib
import socket
import struct
import time
from typing import Any, Protocol

from hybridlm.errors import RunError, UserError
from hybridlm.settings import json_text
from hybridlm.storage.writing import AppendedFile, make_folder, write_text

Record = dict[str, Any]
FILE = "metrics.jsonl"
_SHOWN = 240  # characters of an error of Weights & Biases


class Writer(Protocol):
    """Writes records; after `flush` they are stored."""

    def write(self, record: Record) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class JsonlWriter:
    """Appends records to a file; a kill can truncate the last line only."""

    def __init__(self, path: pathlib.Path):
        self._file = AppendedFile(path)

    def write(self, record: Record) -> None:
        self._file.write((json_text.dumps(record) + "\n").encode())

    def flush(self) -> None:
        self._file.sync()

    def close(self) -> None:
        self._file.close()


class TensorBoardWriter:
    """Writes the scalars of each record as `kind/name`.

    It makes the events of tensorboardX and writes their file itself: tensorboardX writes in a
    thread, where a full disk ends in a traceback and the run goes on without its events.
    """

    def __init__(self, folder: pathlib.Path, resume_step: int):
        """Begins a file in `folder`; events after `resume_step` in older files are dropped."""
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import masked_crc32c

        self._pb, self._crc = event_pb2, masked_crc32c
        make_folder(folder)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}"
        self._file = AppendedFile(folder / name)
        self._write(file_version="brain.Event:2")
        if resume_step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(step=resume_step + 1, session_log=start)

    def write(self, record: Record) -> None:
        from tensorboardX.summary import scalar

        for name, value in record.items():
            # TensorBoard warns of NaN and does not plot it; metrics.jsonl has it.
            if isinstance(value, int | float) and name != "step" and math.isfinite(value):
                summary = scalar(f"{record['kind']}/{name}", value)
                self._write(step=record["step"], summary=summary)

    def flush(self) -> None:
        self._file.sync()

    def close(self) -> None:
        self._file.close()

    def _write(self, **event: Any) -> None:
        """Appends an event as a TFRecord: length, its checksum, content, its checksum."""
        content = self._pb.Event(wall_time=time.time(), **event).SerializeToString()
        length = struct.pack("<Q", len(content))
        sums = (struct.pack("<I", self._crc(part)) for part in (length, content))
        self._file.write(length + next(sums) + content + next(sums))


class WandbWriter:
    """Writes the scalars of each record as `kind/name` to a Weights & Biases project."""

    def __init__(self, project: str, name: str, run_id: str, config: dict[str, Any]):
        """Begins or resumes the run `run_id` of the project, which shows it as `name`.

        Raises:
          UserError: if the package is missing, or the run cannot begin, as without a login.
        """
        try:
            import wandb
        except ModuleNotFoundError:
            raise UserError(
                "train.wandb needs Weights & Biases: pip install 'hybridlm[wandb]', or set it to None"
            ) from None
        try:
            self._run = wandb.init(
                project=project, name=name, id=run_id, resume="allow", config=config
            )
        except Exception as error:  # its own, and those of its network client
            reason = " ".join(str(error).split())[:_SHOWN] or type(error).__name__
            raise UserError(
                f"train.wandb {project!r} cannot begin a run at Weights & Biases ({reason}): `wandb login`"
                " once, set WANDB_MODE=offline, or set train.wandb to None"
            ) from error

    def write(self, record: Record) -> None:
        scalars = {k: v for k, v in record.items() if isinstance(v, int | float) and k != "step"}
        self._run.log({f"{record['kind']}/{k}": v for k, v in scalars.items()}, step=record["step"])

    def flush(self) -> None: ...

    def close(self) -> None:
        """Ends the run as finished, once."""
        run, self._run = self._run, None
        if run is not None:
            run.finish()

    def fail(self) -> None:
        """Ends the run as failed if it is still open; what stopped it is more than an error here."""
        run, self._run = self._run, None
        if run is not None:
            with contextlib.suppress(Exception):
                run.finish(exit_code=1)


class Writers:
    """Passes each record to several writers."""

    def __init__(self, writers: list[Writer]):
        self._writers = writers

    def write(self, record: Record) -> None:
        for writer in self._writers:
            writer.write(record)

    def flush(self) -> None:
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


def read(path: pathlib.Path) -> list[Record]:
    """The records of `metrics.jsonl`, without a truncated last line; empty without a file.

    Raises:
      RunError: for a line that is not a JSON record.
    """
    if not path.exists():
        return []
    *whole, _ = path.read_bytes().split(b"\n")  # the last is empty or truncated
    records = []
    for number, line in enumerate(whole, start=1):
        try:
            record = parse(line)
            _check(record)
            records.append(record)
        except (ValueError, RecursionError) as error:
            raise RunError(
                f"{path} is damaged in line {number} ({error}): remove that line,"
                f" {json_text.shown(line)}"
            ) from None
    return records


def _check(record: Any) -> None:
    """Raises ValueError if a record has not what every reader uses; a model folder has no step."""
    if not isinstance(record, dict):
        raise ValueError("it is no JSON object")
    if not isinstance(record.get("kind"), str):
        raise ValueError("it has no kind")
    if "step" not in record or not isinstance(record["step"], int | None):
        raise ValueError("it has no step")


def parse(line: bytes) -> Any:
    """The value of one line; raises ValueError if it is not JSON."""
    return json_text.loads(line, old_names=True)


def cut_back(path: pathlib.Path, step: int) -> None:
    """Drops the records after `step`, atomically; step 0 drops all of them.

    Raises:
      RunError: for a line that is not a JSON record. WriteError: if it cannot be written.
    """
    if not path.exists():
        return
    kept = [record for record in read(path) if record["step"] <= step] if step else []
    write_text(path, "".join(json_text.dumps(record) + "\n" for record in kept))
