"""Reads GGUF files (llama.cpp) with the `gguf` package, as if they were checkpoints of transformers.

Names of tensors and keys of the metadata are turned into those of transformers. llama.cpp keeps the
rows of q and k of Llama in another order, for rotating neighbours: that is undone here. Quantised
tensors are dequantised by the package.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from hybridlm.convert.safetensors_folder import DTYPES
from hybridlm.convert.transforms import HalvesFromPairs
from hybridlm.data.gguf_tokenizer import absent, open_gguf, value
from hybridlm.data.settings import TokenizerConfig
from hybridlm.errors import ConvertError, DataError
from hybridlm.models.rope_scaling import Llama3RopeConfig

SUFFIX = ".gguf"
#: Architectures that are read, and the classes of transformers that they are.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
_GEMMA = ("gemma2", "gemma3")
#: Layers of the models in which llama.cpp divides logits by sqrt(width / heads), not by a key's size.
_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}
#: Classes whose norms have an offset of 1, which llama.cpp's converter adds to the scales.
_OFFSET = tuple(ARCHITECTURES[name] for name in _GEMMA)
_PERMUTED = ("llama",)  # architectures whose rows of q and k are in llama.cpp's order
#: Keys below the architecture's name, and those of config.json.
KEYS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
}
_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_INNER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
#: Names that mean another norm in models with norms after each half.
_INNER_GEMMA = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
ROPE_FACTORS = "rope_freqs.weight"
LLAMA3_LENGTH = 8192


@dataclasses.dataclass(frozen=True)
class GGUFFile:
    """A file with its metadata as a config.json, and its tensors under the names of transformers.

    Attributes:
      path: of the file.
      config: the keys of a config.json.
      entries: the reader's tensors by the names of transformers.
      tokenizer: its settings; None if it cannot be read.
      why_no_tokenizer: then, why.
    """

    path: pathlib.Path
    config: dict[str, Any]
    entries: Mapping[str, Any]
    tokenizer: TokenizerConfig | None
    why_no_tokenizer: str | None

    @classmethod
    def open(cls, path: pathlib.Path) -> "GGUFFile":
        """Reads the metadata.

        Raises:
          ConvertError: if the file, its architecture, an option or a type of tensors is not known.
        """
        if not path.is_file():
            raise ConvertError(f"{path} does not exist")
        try:
            reader = open_gguf(path)
        except DataError as error:
            raise ConvertError(str(error)) from None
        inner = _INNER | (_INNER_GEMMA if _architecture(reader) in _GEMMA else {})
        entries = {_their_name(t.name, inner): t for t in reader.tensors}
        config = _config(reader, path, entries)
        entries.pop(ROPE_FACTORS, None)
        _check_types(path, entries)
        reason = absent(reader)
        tokenizer = None if reason else TokenizerConfig("gguf", str(path))
        return cls(path, config, entries, tokenizer, reason)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor; GGUF lists dimensions from the innermost."""
        return {name: tuple(map(int, reversed(t.shape))) for name, t in self.entries.items()}

    @property
    def dtypes(self) -> dict[str, np.dtype]:
        """The dtype of each tensor, as it is stored; float32 for a quantised one."""
        return {n: DTYPES.get(t.tensor_type.name, DTYPES["F32"]) for n, t in self.entries.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantised, float32."""
        x = _dequantised(self.entries[name]).reshape(self.shapes[name])
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        part = name.split(".")[-2]
        if self.config["architectures"][0] in _OFFSET and part.endswith("norm"):
            return x - 1
        if self.config["model_type"] in _PERMUTED and part in heads:
            count = self.config[heads[part]]
            return HalvesFromPairs(count, x.shape[0] // count).forward(x)
        return x


def _architecture(reader: Any) -> str | None:
    return value(reader, "general.architecture")


def _their_name(name: str, inner: Mapping[str, str]) -> str:
    match = _LAYER.fullmatch(name)
    if match and match[2] in inner:
        return f"model.layers.{match[1]}.{inner[match[2]]}.{match[3]}"
    return _OUTER.get(name, name)


def _config(reader: Any, path: pathlib.Path, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config.json; metadata without a meaning here keep their names, to be refused."""
    name = _architecture(reader)
    if name not in ARCHITECTURES:
        raise ConvertError(
            f"{path}: hybridlm reads GGUF files of {', '.join(ARCHITECTURES)}, not of {name}"
        )
    start = f"{name}."
    given = {
        key.removeprefix(start): field.contents()
        for key, field in reader.fields.items()
        if key.startswith(start)
    }
    config: dict[str, Any] = {"architectures": [ARCHITECTURES[name]], "model_type": name}
    config |= {theirs: given.pop(key) for key, theirs in KEYS.items() if key in given}
    if not isinstance(config.get("num_attention_heads"), int):
        raise ConvertError(f"{path}: {start}attention.head_count is missing, or one a layer")
    given.pop("vocab_size", None)
    if "model.embed_tokens.weight" not in entries:
        raise ConvertError(f"{path}: has no token_embd.weight")
    config["vocab_size"] = int(entries["model.embed_tokens.weight"].shape[1])
    config["tie_word_embeddings"] = "lm_head.weight" not in entries
    layer = "model.layers.0.self_attn"
    if name == "gemma3":
        config.setdefault("rope_theta", 1_000_000.0)
    if name != "qwen2":
        config["attention_bias"] = f"{layer}.q_proj.bias" in entries
    if name == "llama":
        config["mlp_bias"] = "model.layers.0.mlp.gate_proj.bias" in entries
    size = config.setdefault(
        "head_dim", config.get("hidden_size", 0) // max(config["num_attention_heads"], 1)
    )
    for key in ("rope.dimension_count", "attention.value_length"):
        if given.get(key) == size:
            given.pop(key)
    if given.get("expert_count") == 0:
        given.pop("expert_count")
        given.pop("expert_used_count", None)
    config |= _rope(given, config, entries, path)
    if name in _GEMMA:
        config |= _gemma(name, given, config)
    return config | {f"{start}{key}": left for key, left in given.items()}


def _gemma(name: str, given: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """What the metadata do not say: llama.cpp has it in its code."""
    scalar = config["head_dim"]
    if config.get("num_hidden_layers") == _SCALED_BY_WIDTH[name]:
        scalar = config.get("hidden_size", 0) // max(config["num_attention_heads"], 1)
    found: dict[str, Any] = {"model_type": f"{name}_text" if name == "gemma3" else name}
    found["query_pre_attn_scalar"] = scalar
    if name == "gemma3":
        sliding = {"rope_theta": given.pop("rope.freq_base_swa", 10_000.0)}
        ropes = {"full_attention": config["rope_parameters"], "sliding_attention": sliding}
        found["rope_parameters"] = ropes
    return found


def _rope(
    given: dict[str, Any], config: dict[str, Any], entries: Mapping[str, Any], path: pathlib.Path
) -> dict[str, Any]:
    """`rope_parameters`, from the metadata and from the tensor of factors of Llama 3.1."""
    base = {"rope_theta": config.pop("rope_theta", 10_000.0)}
    kind = given.pop("rope.scaling.type", None)
    if kind in ("linear", "yarn"):
        base |= {"rope_type": kind, "factor": given.pop("rope.scaling.factor", 1.0)}
        length = given.pop("rope.scaling.original_context_length", None)
        if kind == "yarn" and length is not None:
            base["original_max_position_embeddings"] = length
    elif kind not in (None, "none"):
        given["rope.scaling.type"] = kind
    if ROPE_FACTORS not in entries:
        return {"rope_parameters": base}
    divisors = _dequantised(entries[ROPE_FACTORS]).reshape(-1)
    size = 2 * len(divisors)
    # The file has the factors alone. The lowest frequency is divided by the whole factor, and Llama
    # 3.1, 3.2 and 3.3 have one length and one pair of bounds.
    found = Llama3RopeConfig(max(float(divisors.max()), 1.0), LLAMA3_LENGTH)
    if np.allclose(1 / found.frequency_factors(base["rope_theta"], size), divisors, rtol=1e-4):
        return {
            "rope_parameters": base
            | {
                "rope_type": "llama3",
                "factor": found.factor,
                "original_max_position_embeddings": found.length,
                "low_freq_factor": found.low,
                "high_freq_factor": found.high,
            }
        }
    raise ConvertError(
        f"{path}: the factors in {ROPE_FACTORS} are not those of Llama 3.1's scaling"
    )


def _check_types(path: pathlib.Path, entries: Mapping[str, Any]) -> None:
    """Refuses types of tensors that the package cannot dequantise."""
    import gguf

    for kind in {t.tensor_type for t in entries.values()}:
        _, size = gguf.GGML_QUANT_SIZES[kind]
        try:
            gguf.dequantize(np.zeros((1, size), np.uint8), kind)
        except (NotImplementedError, KeyError, ValueError) as error:
            if isinstance(error, ValueError) and kind.name in ("F32", "F16"):
                continue
            raise ConvertError(
                f"{path}: has tensors of type {kind.name}, which the gguf package does not"
                " dequantise: use a file of another quantisation"
            ) from None


def _dequantised(tensor: Any) -> np.ndarray:
    import gguf

    return np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
