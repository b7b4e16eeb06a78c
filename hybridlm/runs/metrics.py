"""Writes a run's metrics to `metrics.jsonl`, TensorBoard and, optionally, Weights & Biases.

`metrics.jsonl` is the complete record: one JSON object per line with `kind` ("train", "eval",
"run", "sample") and `step`. On resume, records after the checkpoint's step are dropped and computed
again, so a killed run ends with the same lines as an uninterrupted one, except for times.
"""

import json
import math
import os
import pathlib
from typing import Any, Protocol

from hybridlm.errors import RunError, UserError

Record = dict[str, Any]
FILE = "metrics.jsonl"


class Writer(Protocol):
    """Writes records; after `flush` they are stored."""

    def write(self, record: Record) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class JsonlWriter:
    """Appends records to a file; a kill can truncate the last line only."""

    def __init__(self, path: pathlib.Path):
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        self._file.write(json.dumps(_finite(record)) + "\n")
        self._file.flush()

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.flush()
        self._file.close()


class TensorBoardWriter:
    """Writes the scalars of each record as `kind/name`."""

    def __init__(self, folder: pathlib.Path, resume_step: int):
        from tensorboardX import SummaryWriter

        purge = resume_step + 1 if resume_step else None
        self._writer = SummaryWriter(str(folder), purge_step=purge)

    def write(self, record: Record) -> None:
        for name, value in record.items():
            # TensorBoard warns of NaN and does not plot it; metrics.jsonl has it.
            if isinstance(value, int | float) and name != "step" and math.isfinite(value):
                self._writer.add_scalar(f"{record['kind']}/{name}", value, record["step"])

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandbWriter:
    """Writes the scalars of each record as `kind/name` to a Weights & Biases project."""

    def __init__(self, project: str, workdir: pathlib.Path, config: dict[str, Any]):
        try:
            import wandb
        except ModuleNotFoundError:
            raise UserError(
                "train.wandb needs Weights & Biases: pip install 'hybridlm[wandb]', or set it to None"
            ) from None
        name = workdir.name
        self._run = wandb.init(project=project, name=name, id=name, resume="allow", config=config)

    def write(self, record: Record) -> None:
        scalars = {k: v for k, v in record.items() if isinstance(v, int | float) and k != "step"}
        self._run.log({f"{record['kind']}/{k}": v for k, v in scalars.items()}, step=record["step"])

    def flush(self) -> None: ...

    def close(self) -> None:
        self._run.finish()


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
            record = json.loads(line)
            record["kind"], record["step"]  # every reader uses them
            records.append(record)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise RunError(
                f"{path} is damaged in line {number} ({error}): remove that line"
            ) from None
    return records


def cut_back(path: pathlib.Path, step: int) -> None:
    """Drops the records after `step`, atomically; step 0 drops all of them."""
    if not path.exists():
        return
    kept = [record for record in read(path) if record["step"] <= step] if step else []
    draft = path.with_suffix(".jsonl.tmp")
    with draft.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in kept)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _finite(value: Any) -> Any:
    """Replaces non-finite numbers by their names, as JSON has none."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, list) else value
