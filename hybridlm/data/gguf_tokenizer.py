"""The tokenizer inside a GGUF file (llama.cpp), as the files that transformers has for it.

GGUF keeps the vocabulary and merges of a byte-level BPE, and only names how text is cut into words
before it. The names below are known; their rules are those of the models' own tokenizer.json. Of
SentencePiece it keeps the pieces and their scores (`hybridlm.data.gguf_sentencepiece`).
"""

import functools
import json
import pathlib
from typing import Any

from hybridlm.data import bpe_json, gguf_sentencepiece
from hybridlm.data.files import require_module
from hybridlm.errors import DataError
from hybridlm.storage import is_remote

_CONTROL, _USER_DEFINED = 3, 4  # types of tokens
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split_by(pattern: str) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    steps = [split | {"invert": False}, _byte_level(False)]
    return {"type": "Sequence", "pretokenizers": steps}


_DIGITS = {"type": "Digits", "individual_digits": True}
#: By the name of a way to cut text: the pre-tokenizer, the normalizer, and whether a word that is a
#: token is taken whole.
_WAYS: dict[str, tuple[dict[str, Any], dict[str, Any] | None, bool]] = {
    "gpt-2": (_byte_level(True), None, False),
    "smollm": (
        {"type": "Sequence", "pretokenizers": [_DIGITS, _byte_level(True)]},
        None,
        False,
    ),
    "llama-bpe": (_split_by(_LLAMA3), None, True),
    "qwen2": (_split_by(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")), {"type": "NFC"}, False),
}


def open_gguf(path: pathlib.Path) -> Any:
    """A `gguf.GGUFReader` of a file of this machine; opening it again costs nothing.

    Raises:
      DataError: if it is in a bucket, is no whole GGUF file, or the library is missing.
    """
    if is_remote(path):
        raise DataError(f"{path}: GGUF files are read on this machine: copy it here")
    try:
        return _reader(str(path), path.stat().st_mtime_ns)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None


@functools.lru_cache(maxsize=2)
def _reader(path: str, changed: int) -> Any:
    del changed  # a file that has changed is read again
    gguf = require_module("gguf", "hf", f"the GGUF file {path}")
    try:
        return gguf.GGUFReader(path)
    except OSError:
        raise
    except Exception as error:  # of numpy, struct or the library: the file is not whole
        said = " ".join(str(error).split())[:100]
        raise DataError(f"{path} is no whole GGUF file: copy it again ({said})") from None


def value(reader: Any, key: str, default: Any = None) -> Any:
    """The value of a metadata key."""
    field = reader.get_field(key)
    return default if field is None else field.contents()


def absent(reader: Any) -> str | None:
    """Why the tokenizer in a file cannot be read, or None if it can."""
    model, way = value(reader, "tokenizer.ggml.model"), value(reader, "tokenizer.ggml.pre")
    if model is None:
        return "the file holds no tokenizer"
    if model == "llama":
        if value(reader, "tokenizer.ggml.scores") is None:
            return "the file's SentencePiece vocabulary has no scores"
        if value(reader, "tokenizer.ggml.remove_extra_whitespaces", False):
            return "the file's SentencePiece tokenizer removes spaces, which hybridlm does not"
        return None
    if model != "gpt2":
        return (
            f"the file holds a tokenizer of kind {model!r}, and hybridlm reads byte-level BPE (gpt2)"
            " and SentencePiece's BPE (llama)"
        )
    if way not in _WAYS:
        return f"the file's tokenizer cuts text as {way!r}: hybridlm knows {', '.join(_WAYS)}"
    return None


def gguf_tokenizer_files(path: pathlib.Path) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json of the tokenizer in a GGUF file.

    Raises:
      DataError: if there is none that can be read.
    """
    reader = open_gguf(path)
    if reason := absent(reader):
        raise DataError(f"{path}: {reason}")
    tokens = value(reader, "tokenizer.ggml.tokens")
    types = value(reader, "tokenizer.ggml.token_type", [1] * len(tokens))
    if value(reader, "tokenizer.ggml.model") == "llama":
        scores = value(reader, "tokenizer.ggml.scores")
        prefix = bool(value(reader, "tokenizer.ggml.add_space_prefix", True))
        content = gguf_sentencepiece.content(tokens, scores, types, prefix=prefix)
    else:
        content = _byte_level_content(reader, tokens, types)
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = value(reader, f"tokenizer.ggml.{key}_token_id")
        if index is not None and index < len(tokens):
            config[f"{role}_token"] = tokens[index]
    template = value(reader, "tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    return {
        "tokenizer.json": json.dumps(content, ensure_ascii=False, allow_nan=False).encode(),
        "tokenizer_config.json": json.dumps(config, indent=2, allow_nan=False).encode(),
    }


def _byte_level_content(reader: Any, tokens: list[str], types: list[int]) -> dict[str, Any]:
    """The contents of a tokenizer.json."""
    cut, normalizer, whole = _WAYS[value(reader, "tokenizer.ggml.pre")]
    added = {i: k == _CONTROL for i, k in enumerate(types) if k in (_CONTROL, _USER_DEFINED)}
    return bpe_json.content(
        tokens,
        added,
        [merge.split(" ", 1) for merge in value(reader, "tokenizer.ggml.merges")],
        normalizer=normalizer,
        pre_tokenizer=cut,
        decoder=_byte_level(True),
        ignore_merges=whole,
    )
