"""Opens a checkpoint of transformers: settings at once, parameters one tensor at a time."""

import dataclasses
import fnmatch
import functools
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hybridlm.convert import gguf_file, registry, wrapped
from hybridlm.convert.family import Family
from hybridlm.convert.keys import Keys
from hybridlm.convert.safetensors_folder import SafetensorsFolder, Tensors
from hybridlm.convert.table import Rule, Table
from hybridlm.data.settings import TokenizerConfig
from hybridlm.errors import ConfigError, ConvertError
from hybridlm.models import stack
from hybridlm.models.params import Model, Params
from hybridlm.models.settings import ModelConfig
from hybridlm.settings.json_text import parse_json
from hybridlm.settings.reader import read_dataclass
from hybridlm.storage import open_path
from hybridlm.storage.local_copies import local_copy

CONFIG = "config.json"
TIED_HEAD = "lm_head.weight"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of another library; no tensor is read before it is asked for.

    Attributes:
      path: the folder of safetensors, or the GGUF file.
      family: of its architecture.
      model: of its settings.
      tensors: of the checkpoint.
      table: how they become parameters.
      tokenizer: its settings; None if the folder has none.
      length: of its context, in tokens; None if it is not said.
      why_no_tokenizer: where there is one that cannot be read, why.
      left_out: how many tensors there are besides, of which parts; "" for none.
    """

    path: pathlib.Path
    family: Family
    model: Model
    tensors: Tensors
    table: Table
    tokenizer: TokenizerConfig | None
    length: int | None
    why_no_tokenizer: str | None = None
    left_out: str = ""

    def parameter(self, name: str) -> np.ndarray:
        """A parameter by its name, float32."""
        rule = self.table.by_parameter[name]
        return self._parameters(rule)[rule.ours.index(name)]

    @functools.cached_property
    def dtypes(self) -> dict[str, np.dtype]:
        """By parameter, the dtype in which it is stored: the widest of the tensors that hold it."""
        stored = self.tensors.dtypes
        return {
            name: max((stored[theirs] for theirs in rule.theirs), key=lambda x: x.itemsize)
            for name, rule in self.table.by_parameter.items()
        }

    def params(self) -> Params:
        """All parameters, as nested float32 arrays: one copy, and the tensor that is being read."""
        filled = {}
        for path, lazy in flatten_dict(self.lazy_params()).items():
            filled[path] = lazy.read()
        return unflatten_dict(filled)

    def lazy_params(self) -> dict[str, Any]:
        """All parameters as `LazyArray`s, nested as the parameters are."""
        names, shapes = flatten_dict(self.model.names), flatten_dict(self.model.abstract)
        return unflatten_dict(
            {
                path: LazyArray(shapes[path].shape, of, path[0] == stack.UNIT, self.parameter)
                for path, of in names.items()
            }
        )

    @functools.cached_property
    def _parameters(self) -> Callable[[Rule], list[np.ndarray]]:
        @functools.lru_cache(maxsize=1)  # a fused tensor is read once for its parts
        def read(rule: Rule) -> list[np.ndarray]:
            theirs = [np.asarray(self.tensors.read(n)).astype(np.float32) for n in rule.theirs]
            return rule.transform.ours(theirs)

        return read


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array of the parameters that is read when it is sliced, a layer's parameter at a time.

    Attributes:
      shape: with the axis of the layers that share it, if `stacked`.
      names: of the parameters in it, one for each row if `stacked`.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]
    stacked: bool
    parameter: Callable[[str], np.ndarray]
    dtype: np.dtype = np.dtype(np.float32)

    def __getitem__(self, index: Any) -> np.ndarray:
        """The row of a layer of a stacked array, or any part of another."""
        if not self.stacked:
            return self.parameter(self.names[0])[index]
        return self.parameter(self.names[index])

    def read(self) -> np.ndarray:
        """The whole array."""
        if not self.stacked:
            return np.ascontiguousarray(self.parameter(self.names[0]))
        whole = np.empty(self.shape, self.dtype)
        for row, values in enumerate(self.rows()):
            whole[row] = values
        return whole

    def rows(self) -> Iterator[np.ndarray]:
        """The whole array, a layer's parameter at a time."""
        return map(self.parameter, self.names)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy
        return self.read().astype(dtype or self.dtype, copy=False)


@dataclasses.dataclass(frozen=True)
class Renamed:
    """The tensors of a checkpoint by the names of a family's table.

    Attributes:
      shapes: by name.
      tensors: by the names of the checkpoint.
      names: the checkpoint's, by those of the table, where they differ.
    """

    shapes: dict[str, tuple[int, ...]]
    tensors: Tensors
    names: dict[str, str]

    @classmethod
    def of(cls, tensors: Tensors, family: Family, table: Table) -> Tensors:
        """Renames what has no place in the table; the tensors themselves if nothing is renamed."""
        names = {}
        for name in tensors.shapes:
            for pattern, replacement in family.aliases:
                new = re.sub(pattern, replacement, name)
                if name not in table.shapes and new in table.shapes and new not in tensors.shapes:
                    names[new] = name
        if not names:
            return tensors
        old = {name: new for new, name in names.items()}
        shapes = {old.get(name, name): shape for name, shape in tensors.shapes.items()}
        return cls(shapes, tensors, names)

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """The dtype of each tensor, as it is stored."""
        dtypes = self.tensors.dtypes
        return {name: dtypes[self.names.get(name, name)] for name in self.shapes}

    def read(self, name: str) -> np.ndarray:
        """One tensor, in its own dtype."""
        return self.tensors.read(self.names.get(name, name))


def is_checkpoint(path: pathlib.Path) -> bool:
    """Whether a path is a GGUF file, or a folder with a config.json of transformers."""
    if path.suffix == gguf_file.SUFFIX:
        return path.is_file()
    config = path / CONFIG
    if not config.is_file():
        return False
    try:
        found = parse_json(config.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and ("architectures" in found or "model_type" in found)


def open_checkpoint(path: pathlib.Path | str) -> Checkpoint:
    """Opens a folder of safetensors or a GGUF file: reads settings and shapes, and no tensor.

    Of a checkpoint in a bucket, a copy on this machine is opened.

    Raises:
      ConvertError: if the architecture, an option or a format is not known, or a tensor is missing,
        extra or of another shape; one sentence.
    """
    given, why, left_out = open_path(path), None, []
    path = pathlib.Path(local_copy(given))  # tensors are read out of the middle of files
    if path.suffix == gguf_file.SUFFIX:
        tensors = gguf_file.GGUFFile.open(path)
        family, config, length = read_settings(tensors.config, str(path))
        tokenizer, why = tensors.tokenizer, tensors.why_no_tokenizer
    else:
        values, where = read_config(path), str(path / CONFIG)
        tensors = SafetensorsFolder.open(path)
        if wrapped.is_wrapped(values):
            tensors, left_out = wrapped.text_tensors(tensors)
            text = wrapped.text_config(values, where)
            values = text | {"tie_word_embeddings": wrapped.is_tied(values, tensors)}
        family, config, length = read_settings(values, where)
        tokenizer = folder_tokenizer(path)
    model = Model.of(config)
    table = Table.of(model, family.rules(config))
    tensors = Renamed.of(tensors, family, table)
    left_out += _check(path, family, model, table, tensors)
    described = wrapped.described(left_out)
    return Checkpoint(given, family, model, tensors, table, tokenizer, length, why, described)


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """The contents of a folder's config.json.

    Raises:
      ConvertError: if it is no JSON object.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ConvertError(f"{folder} is no checkpoint of transformers: it has no {CONFIG}")
    try:
        found = parse_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{path}: malformed JSON ({error})") from None
    if not isinstance(found, dict):
        raise ConvertError(f"{path}: is a JSON {type(found).__name__}, not an object")
    return found


def read_settings(values: dict[str, Any], where: str) -> tuple[Family, ModelConfig, int | None]:
    """(family, settings, context length) of the contents of a config.json.

    Raises:
      ConvertError: if hybridlm does not have the architecture or an option, which it names.
    """
    names = values.get("architectures") or []
    by_type = {f.model_type: f.architecture for f in registry.FAMILIES}
    if not names and values.get("model_type") in by_type:
        names = [by_type[values["model_type"]]]
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names) or not names:
        raise ConvertError(f"{where}: names no architecture")
    family = registry.find(names[0], where)
    method = values.get("quantization_config")
    if method:
        kind = method.get("quant_method", "") if isinstance(method, dict) else ""
        raise ConvertError(
            f"{where}: the checkpoint is quantised ({kind or 'quantization_config'}): hybridlm reads"
            " float32, float16 and bfloat16; dequantise it first"
        )
    keys = Keys(values, where)
    keys.harmless("quantization_config")
    settings = family.settings(keys)
    keys.finish()
    length = keys.integer("max_position_embeddings", keys.integer("model_max_length", None))
    try:
        return family, read_dataclass(ModelConfig, settings, "model"), length
    except ConfigError as error:
        raise ConvertError(f"{where}: {error}") from None


def _check(
    path: pathlib.Path, family: Family, model: Model, table: Table, tensors: Tensors
) -> list[str]:
    """Refuses tensors that are not the model's; returns those that are left out."""
    optional = {
        name
        for name in tensors.shapes
        if any(fnmatch.fnmatch(name, pattern) for pattern in family.unused(model.config))
    }
    found = {name: shape for name, shape in tensors.shapes.items() if name not in optional}
    if model.config.tie_embeddings and TIED_HEAD in found and TIED_HEAD not in table.shapes:
        embedding = table.by_parameter["embedding"].theirs[0]
        same = found.pop(TIED_HEAD) == found.get(embedding)
        if not same or not np.array_equal(tensors.read(TIED_HEAD), tensors.read(embedding)):
            raise ConvertError(
                f"{path}: tie_word_embeddings is true, and {TIED_HEAD} is not {embedding}"
            )
    if faults := table.faults(found):
        raise ConvertError(
            f"the tensors in {path} are not those of {family.architecture} ({faults})"
        )
    return [
        name
        for name in sorted(optional)
        if not any(fnmatch.fnmatch(name, pattern) for pattern in Family.optional)
    ]


def folder_tokenizer(folder: pathlib.Path) -> TokenizerConfig | None:
    """The tokenizer in a folder: tokenizer.json, else tokenizer.model; None without either."""
    for kind, name in (("hf", "tokenizer.json"), ("sentencepiece", "tokenizer.model")):
        if (folder / name).is_file():
            return TokenizerConfig(kind, str(folder / name))
    return None
