"""Reads a run's workdir: config, records, environment, checkpoints. Uses no device."""

import dataclasses
import functools
import pathlib
from typing import Any

from hybridlm.config import Config, read_json
from hybridlm.data import Seen, seen
from hybridlm.errors import RunError
from hybridlm.runs import checkpoint, json_files, lineage, metrics, workdir
from hybridlm.runs.lineage import Origin
from hybridlm.storage import open_path

Record = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """An opened run.

    Attributes:
      path: its workdir.
      config: the resolved config, with the vocabulary size.
      records: all lines of `metrics.jsonl`, in order.
      environment: command, versions, devices; {} if the run has not recorded them.
    """

    path: pathlib.Path
    config: Config
    records: list[Record]
    environment: dict[str, Any]

    @classmethod
    def open(cls, path: pathlib.Path | str) -> "Run":
        """Reads the workdir of a run, finished or not.

        Raises:
          UserError: if the folder is not a run, or one of its files is damaged.
        """
        path = open_path(path)
        if not path.is_dir():
            raise RunError(f"{path} is not a folder")
        if not (path / workdir.CONFIG).is_file():
            raise RunError(f"{path} is no run: it has no {workdir.CONFIG}")
        environment = path / workdir.ENVIRONMENT
        return cls(
            path,
            read_json(path / workdir.CONFIG),
            metrics.read(path / metrics.FILE),
            json_files.read_json(environment) if environment.exists() else {},
        )

    @property
    def train_records(self) -> list[Record]:
        """Records of training steps: loss (nats), bits_per_byte, grad_norm, learning_rate, ..."""
        return self._of("train")

    @property
    def eval_records(self) -> list[Record]:
        """Records of evaluations: loss, bits_per_byte, by_position."""
        return self._of("eval")

    @property
    def facts(self) -> Record:
        """The newest record of a start: parameters, FLOPs, data, bigram baseline; {} if missing.

        There are several if the run has gone on to more steps than it was started with.
        """
        return next(reversed(self._of("run")), {})

    @property
    def sample(self) -> Record:
        """The newest record of a generated sample; {} if there is none."""
        return next(reversed(self._of("sample")), {})

    @property
    def steps_done(self) -> int:
        """The newest recorded step."""
        return max((r["step"] for r in self.records), default=0)

    def seen(self, step: int | None = None) -> list[Seen]:
        """What the run read of each source up to `step` (default: the newest recorded one)."""
        sources = self.facts.get("data", {}).get("sources", {})
        return seen(self.config.data, sources, self.steps_done if step is None else step)

    @functools.cached_property
    def lineage(self) -> list[Origin]:
        """Whose parameters the run began with, nearest source first; empty for a new model."""
        return lineage.read(self.path)

    @functools.cached_property
    def checkpoints(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return checkpoint.steps(self.path)

    def params(self, step: int | None = None) -> dict[str, Any]:
        """Parameters of a checkpoint (default: the newest), as nested dicts of numpy arrays."""
        return checkpoint.load_numpy(self.path, step)[1]["params"]

    def _of(self, kind: str) -> list[Record]:
        return [r for r in self.records if r["kind"] == kind]
