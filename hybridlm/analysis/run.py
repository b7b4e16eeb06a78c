"""Opens a run's workdir, here or in a bucket: config, records, tables, checkpoints. Uses no device."""

import functools
import pathlib
from typing import Any

from hybridlm.analysis import rows
from hybridlm.analysis.tables import frame
from hybridlm.config import Config, flat, read_json, to_dict
from hybridlm.data import Seen, seen
from hybridlm.errors import ConfigError, RunError
from hybridlm.runs import checkpoint, json_files, lineage, metrics, stored, workdir
from hybridlm.runs.lineage import Origin
from hybridlm.storage import open_path, own_name

Record = dict[str, Any]


class Results:
    """Probes and evaluations in a folder and in the folders in it: of a run, or of a model folder.

    Attributes:
      path: the folder.
    """

    def __init__(self, path: pathlib.Path | str):
        self.path = open_path(path)

    @property
    def progress(self) -> rows.Progress:
        """Tokens and FLOPs by step: not known without the run."""
        return rows.Progress((), None)

    @property
    def probe_kinds(self) -> list[str]:
        """The probes of which there are records, in the workdir or in a folder in it."""
        return list(dict.fromkeys(row["probe"] for row in self.probe_rows()))

    def probes(self, kind: str) -> Any:
        """The entries of a probe, of training and of `hybridlm probe` with `--out` in the workdir.

        Columns: probe, step, tokens, flops, those of docs/probes.md, folder ("" for training).
        """
        return frame(self.probe_rows(kind))

    def evaluations(self) -> Any:
        """The results of `hybridlm eval` with `--out` in the workdir, a row for a task and length.

        Columns: task, length, step, tokens, flops, weights, figure (the name of the task's main
        figure), value, the task's other numbers, folder.
        """
        return frame(self.evaluation_rows())

    def by_depth(self) -> Any:
        """Accuracy of tasks with a needle: the columns of `evaluations()` that say what was
        measured, depth (%) and accuracy."""
        return frame(self.depth_rows())

    # --- the same as records, without pandas ---------------------------------------------------

    def probe_rows(self, kind: str | None = None) -> list[Record]:
        """`probes(kind)` as records; of all probes without a kind."""
        return rows.probe_rows(rows.probe_files(self.path), self.progress, kind)

    def evaluation_rows(self) -> list[Record]:
        """`evaluations()` as records."""
        return rows.evaluation_rows(rows.evaluation_files(self.path), self.progress)

    def evaluation_commands(self) -> list[str]:
        """The commands that made the evaluations."""
        return rows.evaluation_commands(self.path)

    def depth_rows(self) -> list[Record]:
        """`by_depth()` as records."""
        return rows.depth_rows(rows.evaluation_files(self.path), self.progress)


class Run(Results):
    """An opened run, finished or not.

    Attributes:
      path: its workdir.
      settings: the contents of its `config.json`.
      records: all lines of `metrics.jsonl`, in order.
      environment: command, versions, devices; {} if the run has not recorded them.
    """

    def __init__(self, path: pathlib.Path | str):
        """Reads the files of a workdir, and no array.

        Raises:
          UserError: if the folder is not a run, or one of its files is damaged.
        """
        super().__init__(path)
        path = self.path
        if not path.is_dir():
            raise RunError(f"{path} is not a folder")
        if not (path / workdir.CONFIG).is_file():
            raise RunError(f"{path} is no run: it has no {workdir.CONFIG}")
        environment = path / workdir.ENVIRONMENT
        self.settings: dict[str, Any] = json_files.read_settings(path / workdir.CONFIG)
        self.records: list[Record] = metrics.read(path / metrics.FILE)
        self.environment: dict[str, Any] = (
            json_files.read_object(environment) if environment.exists() else {}
        )

    @property
    def name(self) -> str:
        """The name of its folder."""
        return own_name(self.path)

    @functools.cached_property
    def config(self) -> Config:
        """The resolved config, with the vocabulary size.

        Raises:
          ConfigError: if this program does not read it, for instance for a mixer that it lacks.
        """
        return read_json(self.path / workdir.CONFIG)

    def flat_settings(self) -> dict[str, Any]:
        """The config as {dotted key: value}: with today's defaults for keys newer than the run,
        or as it was written, if this program does not read it."""
        try:
            return flat(to_dict(self.config))
        except ConfigError:
            return flat(self.settings)

    # --- tables --------------------------------------------------------------------------------

    def metrics(self, kind: str = "train") -> Any:
        """The records of `metrics.jsonl` of a kind ("train", "eval", "run", "sample") as a table.

        Columns: step, tokens, flops, then the record's own numbers and texts.
        """
        return frame(self.rows(kind))

    def by_position(self) -> Any:
        """The held-out loss by position in the context.

        Columns: step, tokens, flops, first, last (positions from 0), loss (nats), bits_per_byte,
        targets.
        """
        return frame(self.position_rows())

    def layer_errors(self) -> Any:
        """The squared error of each layer that is distilled block by block, while training.

        Columns: step, tokens, flops, layer, error.
        """
        return frame(self.layer_error_rows())

    # --- the same as records, without pandas ---------------------------------------------------

    @functools.cached_property
    def progress(self) -> rows.Progress:
        """Tokens and FLOPs by step."""
        return rows.Progress(self.records, self._tokens_per_step)

    def rows(self, kind: str) -> list[Record]:
        """`metrics(kind)` as records."""
        return rows.metric_rows(self.records, self.progress, kind)

    def position_rows(self) -> list[Record]:
        """`by_position()` as records."""
        return rows.position_rows(self.records, self.progress)

    def layer_error_rows(self) -> list[Record]:
        """`layer_errors()` as records."""
        return rows.layer_error_rows(self.records, self.progress)

    # --- records of metrics.jsonl --------------------------------------------------------------

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

    # --- checkpoints ---------------------------------------------------------------------------

    @functools.cached_property
    def checkpoints(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return checkpoint.steps(self.path)

    def checkpoint(self, step: int | None = None) -> stored.StoredCheckpoint:
        """A checkpoint (default: the newest), of which arrays are read by name, one or all."""
        return stored.open_checkpoint(self.path, step)

    def params(self, step: int | None = None) -> dict[str, Any]:
        """Parameters of a checkpoint (default: the newest), as nested dicts of numpy arrays."""
        step = checkpoint.find(self.path, step)
        return checkpoint.load_tree(self.path / checkpoint.FOLDER / str(step), ("params",))[
            "params"
        ]

    @property
    def _tokens_per_step(self) -> int | None:
        data = self.settings.get("data") or {}
        return (
            data["batch_size"] * data["seq_len"]
            if {"batch_size", "seq_len"} <= data.keys()
            else None
        )

    def _of(self, kind: str) -> list[Record]:
        return [r for r in self.records if r["kind"] == kind]
