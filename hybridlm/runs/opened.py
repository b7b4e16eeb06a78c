"""Opens a model from a run, from a model folder without a run, or from a checkpoint of transformers.

A model folder holds `model.json` (settings of the model, its tokenizer, and its source), the
parameters as the Orbax folder `params/`, and the tokenizer's file, if there is one.
"""

import dataclasses
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from hybridlm import convert
from hybridlm.data.settings import DataConfig, TokenizerConfig
from hybridlm.data.tokenizer_files import MAIN, tokenizer_files
from hybridlm.data.tokenizers import NoTokenizer, Tokenizer, open_tokenizer
from hybridlm.errors import ConfigError, RunError
from hybridlm.models.dtypes import compute_dtype
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model, Params
from hybridlm.models.programs import per_model
from hybridlm.models.settings import ModelConfig
from hybridlm.models.trainable import Trainable
from hybridlm.progress import doing, say
from hybridlm.runs import checkpoint, lineage, metrics
from hybridlm.runs.json_files import read_settings, write_json
from hybridlm.runs.lineage import Origin
from hybridlm.runs.workdir import CONFIG
from hybridlm.settings.plain import to_dict
from hybridlm.settings.reader import read_dataclass
from hybridlm.storage import open_path
from hybridlm.storage.writing import write_bytes, writing

MODEL, PARAMS = "model.json", "params"
#: Of a checkpoint: the parameters, or their moving average (`train.ema_decay`).
Weights = Literal["raw", "ema"]


@dataclasses.dataclass(frozen=True)
class OpenedModel:
    """A model with its parameters, for evaluations, probes, generation and notebooks.

    Attributes:
      path: the run, model folder or checkpoint.
      model: its graph and settings (`model.config`), with the vocabulary size filled in.
      params: nested dict of numpy arrays, float32; `Model.bind` makes a module of them.
      tokenizer: the one that the model was trained with.
      step: of the checkpoint; None in a model folder that does not name one.
      settings: the contents of a run's `config.json`, or of `model.json`; those that `model.json`
        would have, for a checkpoint of transformers.
      data: settings of the run's data; None in a model folder that does not name it.
      weights: whether `params` are the parameters of the step, or their moving average.
      averaged: the steps whose parameters were averaged; empty for those of one step.
    """

    path: pathlib.Path
    model: Model
    params: Params
    tokenizer: Tokenizer
    step: int | None
    settings: dict[str, Any]
    data: DataConfig | None
    weights: Weights = "raw"
    averaged: tuple[int, ...] = ()

    @property
    def config(self) -> ModelConfig:
        """Settings of the model."""
        return self.model.config

    @property
    def dtype(self) -> jnp.dtype:
        """Of activations in training: `train.dtype` on the attached devices."""
        return compute_dtype((self.settings.get("train") or {}).get("dtype", "float32"))

    @property
    def seed(self) -> int:
        """The run's seed, which splits its documents into training and held-out ones."""
        return self.settings.get("seed", 0)

    @property
    def length(self) -> int:
        """Tokens per sequence in training.

        Raises:
          RunError: if the model folder does not state it.
        """
        length = self.data.seq_len if self.data else self.settings.get("length")
        if length is None:
            raise RunError(f"{self.path / MODEL} does not say the length of training")
        return length

    def params_at(self, step: int) -> Params:
        """The same kind of weights of another checkpoint of the run.

        Raises:
          RunError: if there is no such checkpoint, or it has no such weights.
        """
        with doing(f"opening the checkpoint of step {step} in {self.path}"):
            return _load(self.path, step, self.weights, self.model, self.settings)[1]

    def training_data(self) -> DataConfig:
        """The settings of the run's data.

        Raises:
          RunError: for a model folder, which has none.
        """
        if self.data is None:
            raise RunError(f"{self.path} is a model folder without a run: it names no data")
        return self.data

    def logits(
        self, tokens_BT: Any, segment_ids_BT: Any = None, *, dtype: jnp.dtype = jnp.float32
    ) -> jax.Array:
        """Logits (B, T, V), float32.

        Args:
          tokens_BT: int, ids of the model's vocabulary.
          segment_ids_BT: int; 0 is padding. The id changes at a document boundary, where positions
            restart at 0. None means one document per row.
          dtype: of activations and matrix products.

        Raises:
          ValueError: for shapes that differ, or ids outside the vocabulary.
        """
        tokens_BT = np.asarray(tokens_BT)
        ids_BT = np.ones_like(tokens_BT) if segment_ids_BT is None else np.asarray(segment_ids_BT)
        check_tokens(tokens_BT, ids_BT, self.config.vocab_size)
        forward = _forward(self.model, dtype)
        return forward(self.params, tokens_BT.astype(np.int32), ids_BT.astype(np.int32))


def open_model(
    path: pathlib.Path | str, step: int | None = None, weights: Weights = "raw"
) -> OpenedModel:
    """Opens a model without the devices or mesh that saved it.

    Args:
      path: a workdir of `hybridlm train`, a folder that `save_model` wrote, or a checkpoint of
        transformers (`hybridlm.convert`): a folder with safetensors, or a GGUF file.
      step: of the run's checkpoint; None is the newest.
      weights: "ema" opens the moving average of a run with `train.ema_decay`.

    Raises:
      RunError: if there is no such run, model or checkpoint, it has no moving average, or the
        tokenizer has changed. ConvertError: as `hybridlm.convert.open_checkpoint`.
    """
    path = open_path(path)
    with doing(f"opening the model in {path}"):
        return _open(path, step, weights)


def _open(path: pathlib.Path, step: int | None, weights: Weights) -> OpenedModel:
    if convert.is_checkpoint(path):
        return _open_checkpoint(path, step, weights)
    if (path / CONFIG).is_file():
        return _open_run(path, step, weights)
    if (path / MODEL).is_file():
        return _open_folder(path, step, weights)
    raise RunError(f"{path} is no run: it has no {CONFIG} (and no {MODEL} of a model folder)")


def check_new(path: pathlib.Path | str) -> None:
    """Checks that `save_model` may write to a path; makes nothing.

    Raises:
      RunError: if there is something. WriteError: if it cannot be looked at.
    """
    path = open_path(path)
    with writing(path):
        if path.exists() and any(path.iterdir()):
            raise RunError(f"{path} is not empty: name a new folder for the model")


def save_model(opened: OpenedModel, path: pathlib.Path | str, *, data: bool = False) -> None:
    """Writes a model folder: settings, parameters, the tokenizer, and the run they are from.

    Args:
      data: also name the run's data, so that held-out loss can be measured beside the run.

    Raises:
      RunError: if `path` is not empty. WriteError: if it cannot be written.
    """
    path = open_path(path)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        check_new(path)
    with doing(f"writing the model to {path}"):
        _save(opened, path, data)


def _save(opened: OpenedModel, path: pathlib.Path, data: bool) -> None:
    checkpoint.save_tree(path / PARAMS, opened.params)
    settings = {
        "model": to_dict(opened.config),
        "tokenizer": {
            **_copied_tokenizer(opened.tokenizer, path),
            "fingerprint": opened.tokenizer.fingerprint,
        },
        "length": opened.data.seq_len if opened.data else opened.settings.get("length"),
        "from": {
            "path": str(opened.path),
            "step": opened.step,
            "weights": opened.weights,
            **({"method": "uniform average", "steps": opened.averaged} if opened.averaged else {}),
            "parameters_sha256": checkpoint.digest(opened.params),
        },
        "lineage": [dataclasses.asdict(origin) for origin in lineage_of(opened.path)],
    }
    if "architecture" in opened.settings:
        settings["architecture"] = opened.settings["architecture"]
    if data:
        used = opened.training_data()
        cache = used.token_cache or str(opened.path / "tokens")
        settings["data"] = to_dict(dataclasses.replace(used, token_cache=cache))
        settings["seed"] = opened.seed
        settings["train"] = {"dtype": (opened.settings.get("train") or {}).get("dtype", "float32")}
    write_json(path / MODEL, settings)  # last: a folder without it is not a model


def lineage_of(path: pathlib.Path) -> list[Origin]:
    """The lineage of a run, or of the model in a model folder, nearest source first.

    Raises:
      RunError: if a file is damaged.
    """
    if not (path / MODEL).is_file():
        return [] if convert.is_checkpoint(path) else lineage.read(path)
    settings = read_settings(path / MODEL)
    first, rest = settings.get("from"), settings.get("lineage") or []
    if not isinstance(rest, list):
        raise RunError(f"{path / MODEL} is damaged: its lineage is no list")
    return lineage.parse([*([first] if first else []), *rest], path / MODEL)


def _open_run(path: pathlib.Path, step: int | None, weights: Weights) -> OpenedModel:
    settings = read_settings(path / CONFIG)
    config = read_section(ModelConfig, settings, "model", path / CONFIG)
    data = read_section(DataConfig, settings, "data", path / CONFIG)
    tokenizer = open_tokenizer(data.tokenizer)
    facts = next((r for r in metrics.read(path / metrics.FILE) if r["kind"] == "run"), {})
    _check_tokenizer(tokenizer, facts.get("data", {}).get("tokenizer"), "run", path)
    model = Model.of(config)
    step, params = _load(path, step, weights, model, settings)
    return OpenedModel(path, model, params, tokenizer, step, settings, data, weights)


def _load(
    path: pathlib.Path, step: int | None, weights: Weights, model: Model, settings: dict[str, Any]
) -> tuple[int, Params]:
    """(step, weights) of a run's checkpoint, the newest for None."""
    step, state = checkpoint.load_numpy(path, step)
    _check_params(model.abstract, state["params"], path)
    if weights == "raw":
        return step, state["params"]
    if "ema" not in state:
        raise RunError(
            f"the checkpoint of step {step} in {path} has no moving average of the parameters: use"
            " the raw weights, or train with train.ema_decay"
        )
    freeze = (settings.get("optimizer") or {}).get("freeze", "")
    trainable = Trainable.of(model, freeze)
    _check_params(trainable.take(model.abstract), state["ema"], path)
    return step, trainable.put(state["params"], state["ema"])


def _open_folder(path: pathlib.Path, step: int | None, weights: Weights) -> OpenedModel:
    if weights != "raw":
        raise RunError(f"{path} is a model folder, which holds one set of weights: open the run's")
    settings = read_settings(path / MODEL)
    config = read_section(ModelConfig, settings, "model", path / MODEL)
    tokenizer = folder_tokenizer(settings, path)
    fingerprint = (settings.get("tokenizer") or {}).get("fingerprint")
    _check_tokenizer(tokenizer, fingerprint, "model", path)
    at = folder_step(settings, path, step)
    params = checkpoint.load_tree(path / PARAMS, remedy=checkpoint.REWRITE)
    model = Model.of(config)
    _check_params(model.abstract, params, path)
    data = None
    if "data" in settings:
        data = read_section(DataConfig, settings, "data", path / MODEL)
    return OpenedModel(path, model, params, tokenizer, at, settings, data)


def _open_checkpoint(path: pathlib.Path, step: int | None, weights: Weights) -> OpenedModel:
    if weights != "raw" or step is not None:
        raise RunError(f"{path} is a checkpoint of transformers, which holds one set of weights")
    checkpoint = open_converted(path)
    tokenizer = checkpoint_tokenizer(checkpoint)
    settings = checkpoint_settings(checkpoint)
    return OpenedModel(
        path, checkpoint.model, checkpoint.params(), tokenizer, None, settings, data=None
    )


def open_converted(path: pathlib.Path) -> convert.Checkpoint:
    """A checkpoint of transformers; says on stderr which of its tensors are left out."""
    found = convert.open_checkpoint(path)
    if found.left_out:
        say(f"{path}: {found.family.architecture} is read; left out are tensors: {found.left_out}")
    return found


def checkpoint_tokenizer(checkpoint: convert.Checkpoint) -> Tokenizer:
    """The tokenizer that came with a checkpoint of transformers, or one that refuses text."""
    if checkpoint.tokenizer is None:
        return NoTokenizer(str(checkpoint.path), checkpoint.why_no_tokenizer)
    return open_tokenizer(checkpoint.tokenizer)


def checkpoint_settings(checkpoint: convert.Checkpoint) -> dict[str, Any]:
    """What `model.json` would say of a checkpoint of transformers."""
    return {
        "model": to_dict(checkpoint.model.config),
        "length": checkpoint.length,
        "architecture": checkpoint.family.architecture,
    }


def folder_tokenizer(settings: dict[str, Any], path: pathlib.Path) -> Tokenizer:
    """The tokenizer of the model folder `path`, from the contents of its `model.json`."""
    written = dict(settings.get("tokenizer") or {})
    written.pop("fingerprint", None)
    if written.get("kind") == NoTokenizer.kind:
        return NoTokenizer(str(path))
    if written.get("path") is not None:
        written["path"] = str(path / written["path"])
    return open_tokenizer(read_section(TokenizerConfig, {"tokenizer": written}, "tokenizer", path))


def folder_step(settings: dict[str, Any], path: pathlib.Path, step: int | None) -> int | None:
    """The step that the model folder `path` names; None if it names none.

    Raises:
      RunError: if `step` is given and is another one.
    """
    at = (settings.get("from") or {}).get("step")
    if step is not None and step != at:
        raise RunError(f"{path} is a model folder, which holds no checkpoint of step {step}")
    return at


def read_section(cls: type, settings: Any, key: str, file: pathlib.Path) -> Any:
    """Reads `settings[key]` of a file as the dataclass `cls`."""
    if not isinstance(settings, dict) or key not in settings:
        raise RunError(f"{file} is damaged: it has no {key}")
    try:
        return read_dataclass(cls, settings[key], key)
    except ConfigError as error:
        raise RunError(f"{file}: {error}") from None


def _check_params(abstract: Params, params: Params, path: pathlib.Path) -> None:
    """Holds parameters to those of the model: the same paths, the same shapes."""

    def shapes(tree: Params) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(p, simple=True, separator="/"): x.shape for p, x in leaves}

    wanted, found = shapes(abstract), shapes(params)
    faults = {
        "missing": [name for name in wanted if name not in found],
        "not the model's": [name for name in found if name not in wanted],
        "of another shape": [
            f"{name} {found[name]} instead of {shape}"
            for name, shape in wanted.items()
            if found.get(name, shape) != shape
        ],
    }
    listed = [
        f"{what}: {', '.join(names[:4])}{f' and {len(names) - 4} more' if names[4:] else ''}"
        for what, names in faults.items()
        if names
    ]
    if listed:
        raise RunError(f"the parameters in {path} are not those of its model ({'; '.join(listed)})")


def _check_tokenizer(
    tokenizer: Tokenizer, fingerprint: str | None, what: str, path: pathlib.Path
) -> None:
    if fingerprint is not None and fingerprint != tokenizer.fingerprint:
        raise RunError(
            f"the tokenizer {tokenizer.path} is not the one that the {what} in {path} was trained"
            " with: put its file back"
        )


def _copied_tokenizer(tokenizer: Tokenizer, folder: pathlib.Path) -> dict[str, str | None]:
    """Copies a tokenizer's files; returns the kind and the path in the folder."""
    files = tokenizer_files(tokenizer)
    for name, content in files.items():
        write_bytes(folder / name, content)
    main = next(iter(files), None)
    kinds = {name: kind for kind, name in MAIN.items()}
    return {"kind": kinds.get(main, tokenizer.kind), "path": main}


def check_tokens(tokens_BT: np.ndarray, ids_BT: np.ndarray, vocab_size: int) -> None:
    """Raises ValueError for tokens (B, T) outside the vocabulary, or segment ids of another shape."""
    if tokens_BT.ndim != 2 or not np.issubdtype(tokens_BT.dtype, np.integer) or not tokens_BT.size:
        raise ValueError(
            f"tokens must be whole numbers of shape (B, T), not {tokens_BT.dtype} of shape"
            f" {tokens_BT.shape}"
        )
    if ids_BT.shape != tokens_BT.shape or not np.issubdtype(ids_BT.dtype, np.integer):
        raise ValueError(
            f"segment ids must be whole numbers of shape {tokens_BT.shape}, as tokens, not"
            f" {ids_BT.dtype} of shape {ids_BT.shape}"
        )
    if tokens_BT.min() < 0 or tokens_BT.max() >= vocab_size:
        raise ValueError(
            f"tokens must lie in [0, {vocab_size}), not in [{tokens_BT.min()}, {tokens_BT.max()}]"
        )


@per_model
def _forward(model: Model, dtype: jnp.dtype) -> Any:
    @jax.jit
    def forward(params: Params, tokens_BT: jax.Array, ids_BT: jax.Array) -> jax.Array:
        module = model.bind(params)
        context = SequenceContext.of(ids_BT)
        hidden_BTD = module.hidden(tokens_BT, context, dtype=dtype)
        return module.logits(hidden_BTD).astype(jnp.float32)

    return forward
