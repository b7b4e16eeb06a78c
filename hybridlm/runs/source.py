"""The source of a run's first parameters: what is known of it without reading an array."""

import dataclasses
import pathlib
from typing import Any

from hybridlm import convert
from hybridlm.data.settings import DataConfig
from hybridlm.data.tokenizers import Tokenizer, open_tokenizer
from hybridlm.errors import RunError
from hybridlm.models.settings import ModelConfig
from hybridlm.runs import checkpoint, metrics, opened
from hybridlm.runs.json_files import read_settings
from hybridlm.runs.lineage import Origin
from hybridlm.runs.workdir import CONFIG
from hybridlm.storage import open_path


@dataclasses.dataclass(frozen=True)
class Source:
    """The shapes and facts of a run's checkpoint, of a model folder, or of another library's checkpoint.

    Attributes:
      path: the workdir, the model folder, or the checkpoint.
      step: of the checkpoint; None if a model folder does not name it.
      folder: of the arrays.
      is_run: whether the folder holds a training state; a model folder holds parameters only.
      arrays: `shape` and `dtype` of each array, nested as in a train state.
      settings: the contents of `config.json` or `model.json`.
      tokens: that the model was trained on up to `step`; None if it is not known.
      lineage: of the source itself, nearest first.
      converted: the checkpoint of another library, if it is one.
    """

    path: pathlib.Path
    step: int | None
    folder: pathlib.Path
    is_run: bool
    arrays: dict[str, Any]
    settings: dict[str, Any]
    tokens: int | None
    lineage: list[Origin]
    converted: convert.Checkpoint | None = None

    @property
    def model(self) -> ModelConfig:
        """Settings of the model, with the vocabulary size."""
        return opened.read_section(ModelConfig, self.settings, "model", self.path)

    def load(self, *, optimizer: bool) -> dict[str, Any]:
        """The parameters, as numpy arrays nested as in a train state.

        Those of another library's checkpoint are read when they are sliced, so that a host holds one
        tensor of them at a time.

        Args:
          optimizer: load the rest of the train state, too.
        """
        if self.converted is not None:
            return {"params": self.converted.lazy_params()}
        if not self.is_run:
            return {"params": checkpoint.load_tree(self.folder, remedy=checkpoint.REWRITE)}
        return checkpoint.load_tree(self.folder, None if optimizer else ("params",))

    def tokenizer_fingerprint(self) -> str:
        """Of the tokenizer that the model was trained with."""
        if self.is_run:
            records = metrics.read(self.path / metrics.FILE)
            facts = next((r for r in records if r["kind"] == "run"), {})
            recorded = facts.get("data", {}).get("tokenizer")
        else:
            recorded = (self.settings.get("tokenizer") or {}).get("fingerprint")
        return self.tokenizer().fingerprint if recorded is None else recorded

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with, opened.

        Raises:
          UserError: if its file is missing.
        """
        if self.is_run:
            data = opened.read_section(DataConfig, self.settings, "data", self.path)
            return open_tokenizer(data.tokenizer)
        if self.converted is not None:
            return opened.checkpoint_tokenizer(self.converted)
        return opened.folder_tokenizer(self.settings, self.path)


def open_source(path: pathlib.Path | str, step: int | None = None) -> Source:
    """Opens a run's checkpoint (default: the newest), a model folder or a checkpoint of transformers.

    Raises:
      RunError: if there is no such run, model or checkpoint. ConvertError: as
        `hybridlm.convert.open_checkpoint`.
    """
    path = open_path(path)
    if convert.is_checkpoint(path):
        return _open_converted(path, step)
    is_run = (path / CONFIG).is_file()
    if is_run:
        settings = read_settings(path / CONFIG)
        step = checkpoint.find(path, step)
        folder = path / checkpoint.FOLDER / str(step)
        arrays, facts = checkpoint.describe_tree(folder)
    elif (path / opened.MODEL).is_file():
        settings = read_settings(path / opened.MODEL)
        step = opened.folder_step(settings, path, step)
        folder = path / opened.PARAMS
        params, facts = checkpoint.describe_tree(folder)
        arrays = {"params": params}
    else:
        raise RunError(f"{path} is no run and no model folder: it has no {CONFIG}")
    lineage = opened.lineage_of(path)
    return Source(path, step, folder, is_run, arrays, settings, facts.get("tokens"), lineage)


def _open_converted(path: pathlib.Path, step: int | None) -> Source:
    if step is not None:
        raise RunError(f"{path} is a checkpoint of transformers, which has no step {step}")
    found = opened.open_converted(path)
    arrays, settings = {"params": found.model.abstract}, opened.checkpoint_settings(found)
    return Source(path, None, path, False, arrays, settings, None, [], found)
