"""Writes a model as a checkpoint of transformers, in the class that holds its layers."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from hybridlm.convert import parts, registry, safetensors_folder, wrapped
from hybridlm.convert.family import Family, Inexpressible
from hybridlm.convert.importing import CONFIG, read_settings
from hybridlm.convert.table import Table
from hybridlm.data.tokenizer_files import tokenizer_files
from hybridlm.data.tokenizers import Tokenizer
from hybridlm.errors import ConvertError
from hybridlm.models.feedforward.beside import BesideConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.mixers.delta import DeltaConfig
from hybridlm.models.mixers.dsa import DSAConfig
from hybridlm.models.mixers.lightning import LightningConfig
from hybridlm.models.mixers.mamba1 import Mamba1Config
from hybridlm.models.mixers.mamba2 import Mamba2Config
from hybridlm.models.mixers.mla import MLAConfig
from hybridlm.models.mixers.parallel import ParallelConfig
from hybridlm.models.mixers.rglru import RGLRUConfig
from hybridlm.models.params import Model, Params
from hybridlm.models.settings import ModelConfig
from hybridlm.progress import doing
from hybridlm.settings.plain import flat, to_dict
from hybridlm.storage import open_path
from hybridlm.storage.writing import make_folder, write_bytes, write_text

#: Names of dtypes in config.json, and those of safetensors.
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
DEFAULT_LENGTH = 2048


class Fit(NamedTuple):
    """A family and the keys of the config.json that describe a model in it."""

    family: Family
    keys: dict[str, Any]


def fit(
    model: ModelConfig,
    architecture: str | None = None,
    preferred: str | None = None,
    length: int | None = None,
) -> Fit:
    """The class of transformers that holds a model.

    Args:
      architecture: the class to use; None takes the first that fits.
      preferred: without `architecture`, the class that is tried first.
      length: context length for the config.json.

    Raises:
      ConvertError: if none fits: it says of the nearest which layer or setting it does not hold.
    """
    families = registry.FAMILIES
    if preferred in registry.BY_ARCHITECTURE:
        families = (registry.BY_ARCHITECTURE[preferred], *families)
    if architecture is not None:
        families = (registry.find(architecture, "--architecture"),)
    reasons: dict[str, _Reason] = {}
    for family in families:
        try:
            return Fit(family, _keys(family, model, length or DEFAULT_LENGTH))
        except Inexpressible as error:
            reasons[family.architecture] = _Reason.of(error)
    nearest = max(reasons, key=lambda name: reasons[name][:2])
    what = (
        "no class of transformers that hybridlm knows holds" if len(reasons) > 1 else "cannot hold"
    )
    if len(reasons) > 1:
        raise ConvertError(f"{what} this model; the nearest is {nearest}: {reasons[nearest].text}")
    raise ConvertError(f"{nearest} {what} this model: {reasons[nearest].text}")


class _Differs(Inexpressible):
    """A class whose keys describe another model."""


class _Reason(NamedTuple):
    """Why a class does not hold a model; the largest is of the nearest class."""

    differs: bool
    layer: float
    text: str

    @classmethod
    def of(cls, error: Inexpressible) -> "_Reason":
        words = str(error).split()
        of_layer = words[0] == "layer" and words[1].isdecimal()
        return cls(isinstance(error, _Differs), int(words[1]) if of_layer else -1.0, str(error))


def _keys(family: Family, model: ModelConfig, length: int) -> dict[str, Any]:
    """The config.json of a model in a family, which reads back as the same model.

    Raises:
      Inexpressible: where it does not.
    """
    keys = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "max_position_embeddings": length,
        **family.config(model),
    }
    try:
        _, back, _ = read_settings(
            json.loads(json.dumps(keys, allow_nan=False)), "the exported config.json"
        )
    except ConvertError as error:
        raise Inexpressible(str(error)) from None
    wanted, found = canonical(model, family.ignored), canonical(back, family.ignored)
    for i, (layer, other) in enumerate(zip(wanted.layers, found.layers)):
        for key in {**layer, **other}:
            if layer.get(key) != other.get(key):
                has = (
                    f"{key} {layer.get(key)!r}, where {family.architecture} has {other.get(key)!r}"
                )
                raise _Differs(f"layer {i} has {has}")
    for key, value in wanted.rest.items():
        if found.rest[key] != value:
            has = f"{key} {value!r}, where {family.architecture} has {found.rest[key]!r}"
            raise _Differs(f"the model has {has}")
    return keys


class Canonical(NamedTuple):
    """A model's settings in one form: equal for models with equal outputs.

    Attributes:
      layers: flat settings of each layer.
      rest: of the model outside its layers.
    """

    layers: list[dict[str, Any]]
    rest: dict[str, Any]


def canonical(model: ModelConfig, ignored: frozenset[str] = frozenset()) -> Canonical:
    """The settings of each layer, with defaults that depend on others written out.

    Args:
      ignored: names of settings that are left out.
    """
    of_layers = {"depth", "pattern", "prefix", "suffix", "mixers", "mlp", "feedforwards"}
    of_layers |= {"block", "blocks"}
    rest = {
        f.name: getattr(model, f.name)
        for f in dataclasses.fields(model)
        if f.name not in of_layers | ignored
    }
    rest |= {"depth": model.depth, "logit_scale": parts.rounded(model.logit_scale)}
    if model.per_layer is not None:
        rows = model.per_layer.rows or model.vocab_size
        rest["per_layer"] = dataclasses.replace(model.per_layer, rows=rows)
    layers = [
        {
            key: value
            for half, settings in (
                ("mixer", {**_written_out(model.mixer_of(layer), model), "reads_layer": below}),
                ("feedforward", _written_out(model.feedforward_of(layer), model)),
                ("block", to_dict(model.block_of(layer))),
            )
            for key, value in flat(settings, half).items()
            if key.rpartition(".")[2] not in ignored
        }
        for layer, below in zip(model.layout.layers, model.caches_read(), strict=True)
    ]
    return Canonical(layers, rest)


def _written_out(settings: Any, model: ModelConfig) -> dict[str, Any]:
    plain, width = to_dict(settings), model.width
    if isinstance(settings, AttentionConfig):
        size = settings.head_size(width)
        plain |= {"head_dim": size, "scale": parts.rounded(settings.scale or size**-0.5)}
        plain["value_dim"] = settings.value_size(width)
        plain |= {"kv_out": None, "kv_in": None}  # names; `canonical` numbers the layer
    if isinstance(settings, BesideConfig):
        plain["dense"] = _written_out(settings.dense, model)
    if isinstance(settings, DSAConfig):
        plain |= {"index_out": None, "index_in": None}
    if isinstance(settings, MLAConfig):
        plain["scale"] = float(settings.scale or settings.key_size**-0.5)
        if settings.qk_rope == 0:
            plain["rope"] = None
    if isinstance(settings, DeltaConfig):
        sizes = settings.sizes(width)
        plain |= {"head_dim": sizes.key_size, "value_dim": sizes.value_size}
    if isinstance(settings, LightningConfig):
        plain |= {"head_dim": settings.head_size(width), "scale": float(settings.scale or 1)}
    if plain.get("norm_eps", 0) is None:
        plain["norm_eps"] = model.norm_eps
    if isinstance(settings, parts.Gated):
        plain |= {"kind": "gated", "activation": settings.activation, "bias": settings.bias}
        plain |= {x: getattr(settings, x) for x in ("gate_multiplier", "out_multiplier", "clamp")}
    if isinstance(settings, Mamba1Config):
        plain |= {"inner": settings.channels(width), "expand": None}
        plain["dt_rank"] = settings.rank(width)
        if settings.norm == "none":
            plain["norm_eps"] = None
    if isinstance(settings, Mamba2Config):
        limits = (*(settings.dt_limits or (0.0,)), math.inf)[:2]
        plain |= {"heads": settings.head_count(width), "expand": None, "dt_limits": limits}
    if isinstance(settings, RGLRUConfig):
        plain["recurrent_width"] = settings.channels(width)
    if isinstance(settings, ParallelConfig):
        plain["branches"] = {n: _written_out(x, model) for n, x in settings.branches.items()}
        for key, factor in (
            ("multipliers", settings.multiplier),
            ("input_multipliers", settings.input_multiplier),
        ):
            plain[key] = {name: factor(name) for name in settings.branches}
    return plain


def export(
    model: Model,
    params: Params,
    out: pathlib.Path | str,
    *,
    tokenizer: Tokenizer | None = None,
    architecture: str | None = None,
    preferred: str | None = None,
    length: int | None = None,
    dtype: str = "float32",
    shard_bytes: int = safetensors_folder.SHARD_BYTES,
) -> Fit:
    """Writes config.json, safetensors and the tokenizer's files.

    Args:
      params: nested numpy arrays; one tensor more is in memory at a time.
      tokenizer: whose file is copied, if it has one.
      architecture, preferred: as in `fit`.
      length: context length, for the config.json.
      dtype: of the tensors, a key of `DTYPES`.
      shard_bytes: bytes of a file at most.

    Raises:
      ConvertError: if no class fits, or `out` is not empty. WriteError: if it cannot be written.
    """
    out = open_path(out)
    with doing("looking for a class of transformers that holds the model"):
        found = fit(model.config, architecture, preferred, length)
    if out.exists() and any(out.iterdir()):
        raise ConvertError(f"{out} is not empty: name a new folder")
    with doing(f"writing the checkpoint to {out}"):
        _write(model, params, out, found, tokenizer, dtype, shard_bytes)
    return found


def _write(
    model: Model,
    params: Params,
    out: pathlib.Path,
    found: Fit,
    tokenizer: Tokenizer | None,
    dtype: str,
    shard_bytes: int,
) -> None:
    table = Table.of(model, found.family.rules(model.config))
    make_folder(out)
    tensors = _tensors(table, model.by_name(params))
    shapes, keys = table.shapes, {**found.keys, "dtype": dtype, **_special_ids(tokenizer)}
    if found.family.wrapper is not None:
        keys = wrapped.written(keys, found.family.wrapper)
        shapes = {wrapped.outer_name(name): shape for name, shape in shapes.items()}
        tensors = ((wrapped.outer_name(name), tensor) for name, tensor in tensors)
    safetensors_folder.write(out, shapes, tensors, DTYPES[dtype], shard_bytes)
    for name, content in ({} if tokenizer is None else tokenizer_files(tokenizer)).items():
        write_bytes(out / name, content)
    # Last: a folder without it is not a checkpoint.
    write_text(out / CONFIG, json.dumps(keys, indent=2, allow_nan=False) + "\n")


def _tensors(table: Table, params: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    for rule in table.rules:
        theirs = rule.transform.theirs([np.asarray(params[name]) for name in rule.ours])
        yield from zip(rule.theirs, theirs)


def _special_ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The ids that begin and end a text; null where there is no tokenizer, or it has none."""
    found = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    if tokenizer is not None:
        pieces = tokenizer.pieces()
        for name, index in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id)):
            if index < len(pieces) and pieces[index]:
                found[f"{name}_token_id"] = index
    return found
