"""The text model inside a checkpoint of a model that also sees or hears.

Such a config.json has the text model's keys in an object `text_config`, and the names of its tensors
begin with `language_model.model.` or `model.language_model.`. The text model is read as if it stood
alone; tensors of the rest are left out.
"""

import collections
import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from hybridlm.convert.safetensors_folder import Tensors
from hybridlm.errors import ConvertError

#: Classes of transformers, and the `model_type` of a `text_config` that does not say its own.
WRAPPERS = {
    "Gemma3ForConditionalGeneration": "gemma3_text",
    "Gemma4ForConditionalGeneration": "gemma4_text",
    "Glm5NextForConditionalGeneration": "glm5_next_text",
    "Llama4ForConditionalGeneration": "llama4_text",
    "Mistral3ForConditionalGeneration": "mistral",
    "Qwen3_5ForConditionalGeneration": "qwen3_5_text",
    "Qwen3_5MoeForConditionalGeneration": "qwen3_5_moe_text",
    "LlavaForConditionalGeneration": "llama",
    "Lfm2VlForConditionalGeneration": "lfm2",
}
#: Keys of the text model that a class does not read, unlike the text model's own class.
UNREAD = {"Gemma3ForConditionalGeneration": ("final_logit_softcapping",)}
TEXT = "text_config"
#: What a `text_config` leaves out because it is the default of its class.
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
DEFAULTS = {
    kind: dict(zip((*_SIZES, "num_attention_heads"), numbers))
    for kind, numbers in {
        "gemma3_text": (262_208, 2304, 9216, 26, 8),
        "gemma4_text": (262_144, 2304, 9216, 30, 8),
        "glm5_next_text": (154_880, 4096, 12_288, 45, 64),
        "llama4_text": (202_048, 5120, 8192, 48, 40),
        "mistral": (32_000, 4096, 14_336, 32, 32),
        "ministral": (32_000, 4096, 14_336, 32, 32),
        "ministral3": (131_072, 4096, 14_336, 34, 32),
        "qwen3_5_text": (248_320, 4096, 12_288, 32, 16),
        "qwen3_5_moe_text": (248_320, 2048, 0, 40, 16),
        "llama": (32_000, 4096, 11_008, 32, 32),
        "lfm2": (65_536, 2560, 12_288, 32, 32),
    }.items()
}
HEAD = "lm_head.weight"
_PREFIXES = {
    "language_model.model.": "model.",
    "model.language_model.": "model.",
    "language_model.lm_head.": "lm_head.",
}
_PLAIN = ("model.", "lm_head.")
_TIED = "tie_word_embeddings"


@dataclasses.dataclass(frozen=True)
class TextTensors:
    """The text model's tensors by the names that they have where it stands alone.

    Attributes:
      tensors: of the checkpoint.
      names: the checkpoint's, by those of the text model.
    """

    tensors: Tensors
    names: dict[str, str]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor."""
        return {name: self.tensors.shapes[theirs] for name, theirs in self.names.items()}

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """The dtype of each tensor, as it is stored."""
        dtypes = self.tensors.dtypes
        return {name: dtypes[theirs] for name, theirs in self.names.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, in its own dtype."""
        return self.tensors.read(self.names[name])


def is_wrapped(config: dict[str, Any]) -> bool:
    """Whether a config.json has the text model's keys in an object of their own."""
    names = config.get("architectures")
    return TEXT in config and isinstance(names, list) and names[:1] and names[0] in WRAPPERS


def text_config(config: dict[str, Any], where: str) -> dict[str, Any]:
    """The text model's config.json.

    The keys beside `text_config` say how images and sound enter, and which ids stand for them.

    Args:
      config: for which `is_wrapped`.
    """
    inner = config[TEXT]
    if not isinstance(inner, dict):
        raise ConvertError(f"{where}: {TEXT} must be an object, not {inner!r}")
    kind = inner.get("model_type") or WRAPPERS[config["architectures"][0]]
    found = DEFAULTS.get(kind, {}) | inner | {"model_type": kind}
    found |= dict.fromkeys(UNREAD.get(config["architectures"][0], ()))
    found.pop("architectures", None)
    for key in ("quantization_config", "max_position_embeddings"):
        if config.get(key) and not inner.get(key):
            found[key] = config[key]
    return found


def written(keys: dict[str, Any], wrapper: str) -> dict[str, Any]:
    """The config.json of a model that sees around the keys of a text model, without other keys."""
    text = {k: v for k, v in keys.items() if k != "architectures"}
    outer = {k: keys[k] for k in ("architectures", _TIED, "dtype") if k in keys}
    return {**outer, "model_type": wrapper, TEXT: text}


def outer_name(name: str) -> str:
    """The name of a text model's tensor in the model around it."""
    if name.startswith("model."):
        return f"model.language_model.{name.removeprefix('model.')}"
    return name


def text_tensors(tensors: Tensors) -> tuple[Tensors, list[str]]:
    """(the text model's tensors, the names of the others)."""
    names = {}
    for theirs in tensors.shapes:
        for prefix, ours in _PREFIXES.items():
            if theirs.startswith(prefix):
                names[ours + theirs.removeprefix(prefix)] = theirs
    if names:
        if HEAD in tensors.shapes:
            names[HEAD] = HEAD
    else:
        names = {name: name for name in tensors.shapes if name.startswith(_PLAIN)}
    held = {*names.values()}
    return TextTensors(tensors, names), [name for name in tensors.shapes if name not in held]


def is_tied(config: dict[str, Any], tensors: Tensors) -> bool:
    """Whether the text model's embedding is its head.

    The class ties them if its own key or the text model's says so, unless the checkpoint has a head
    that is another matrix. Many checkpoints say nothing.

    Args:
      config: with `text_config`.
      tensors: of the text model.
    """
    stated = [x.get(_TIED) for x in (config, config[TEXT]) if x.get(_TIED) is not None]
    if stated and not any(stated):
        return False
    if HEAD not in tensors.shapes:
        return True
    embedding = "model.embed_tokens.weight"
    if embedding not in tensors.shapes:
        return False
    return bool(np.array_equal(tensors.read(HEAD), tensors.read(embedding)))


def described(names: Iterable[str]) -> str:
    """Tensors that are left out in a few words: how many there are of each part; "" for none."""
    count = collections.Counter(_part(name) for name in names)
    return ", ".join(f"{number} of {part}" for part, number in count.items())


def _part(name: str) -> str:
    words = name.split(".")
    if words[0] == "model" and len(words) > 2:
        return f"{words[0]}.{words[1]}" + (f".{words[2]}" if words[1] == "layers" else "")
    return words[0]
