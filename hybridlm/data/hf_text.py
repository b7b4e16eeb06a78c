"""Makes a Hugging Face `tokenizer.json` read ordinary text as text, and lose none of it.

Three things stand in the way. The library reads the name of an added token in the text as that
token, unless the token is special, which a `tokenizer.json` may leave to `tokenizer_config.json`.
A model may hold a special token's name as a piece of its own. And a BPE without an unknown token
leaves out the characters that it does not know.
"""

import copy
from typing import Any

_ROLES = "bos_token eos_token unk_token pad_token cls_token sep_token mask_token".split()
_UNMATCHED = "\U0010fffd"  # a private-use character before a name keeps text from matching it


def named_roles(config: dict[str, Any]) -> dict[str, str]:
    """The names that a `tokenizer_config.json` gives to roles, such as "eos_token"."""
    named = {}
    for role in _ROLES:
        value = config.get(role)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            named[role] = value
    return named


def special_names(config: dict[str, Any]) -> set[str]:
    """All tokens that a `tokenizer_config.json` calls special."""
    listed: list[Any] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = config.get(key) or []
        listed += value.values() if isinstance(value, dict) else value
    decoder = config.get("added_tokens_decoder")
    entries = decoder.values() if isinstance(decoder, dict) else ()
    listed += [e for e in entries if isinstance(e, dict) and e.get("special") is True]
    names = {entry.get("content") if isinstance(entry, dict) else entry for entry in listed}
    return {n for n in names if isinstance(n, str)} | set(named_roles(config).values())


def without_pieces(content: dict[str, Any], names: set[str]) -> dict[str, Any] | None:
    """The `tokenizer.json` with a model that makes none of `names` from text.

    Their pieces keep their ids under names that no text has, and they are added tokens no longer.
    The result serves only to encode text.

    Returns:
      None if the model makes none of them as it is.
    """
    model = content.get("model") or {}
    found = _made(model, names)
    if not found:
        return None
    content = copy.deepcopy(content)
    model = content["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {
            _UNMATCHED + piece if piece in found else piece: index
            for piece, index in model["vocab"].items()
        }
    else:
        model["vocab"] = [
            [_UNMATCHED + piece if piece in found else piece, score]
            for piece, score in model["vocab"]
        ]
    if "merges" in model:
        model["merges"] = [
            merge for merge in model["merges"] if _product(model, merge) not in found
        ]
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in found]
    content["post_processor"] = None  # it may name what is gone, and is not used
    return content


def _made(model: dict[str, Any], names: set[str]) -> set[str]:
    """Those of `names` that the model may make from text."""
    vocab = model.get("vocab") or {}
    pieces = vocab if isinstance(vocab, dict) else {piece for piece, _ in vocab}
    found = {name for name in names if name in pieces}
    if not found or model.get("type") != "BPE" or model.get("ignore_merges"):
        return found
    merged = {_product(model, merge) for merge in model["merges"]}
    return {name for name in found if len(name) == 1 or name in merged}


def _product(model: dict[str, Any], merge: str | list[str]) -> str:
    one, other = merge.split(" ") if isinstance(merge, str) else merge
    return one + other.removeprefix(model.get("continuing_subword_prefix") or "")


def with_unknown(content: dict[str, Any]) -> tuple[dict[str, Any], int] | None:
    """The `tokenizer.json` with an unknown token, which stands for text that would be lost.

    Returns:
      The changed content and the id of the token; ids of other tokens may have moved. None if
      no text is lost: the model has an unknown token, or a token for each byte.
    """
    model = content.get("model") or {}
    if model.get("type") != "BPE" or model.get("unk_token") is not None or _has_bytes(content):
        return None
    content = copy.deepcopy(content)
    vocab = content["model"]["vocab"]
    # Far above the others: the library gives the ids after the model's to added tokens.
    index = max(vocab.values(), default=0) + 2 * len(content.get("added_tokens") or ()) + 2
    vocab[_UNMATCHED] = index
    content["model"].update(unk_token=_UNMATCHED, fuse_unk=False)
    return content, index


def _has_bytes(content: dict[str, Any]) -> bool:
    """Whether each byte has a token, so that a BPE loses no text."""
    model = content["model"]
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return False
    vocab = model["vocab"]
    if model.get("byte_fallback") and all(f"<0x{byte:02X}>" in vocab for byte in range(256)):
        return True
    steps = [content.get("normalizer"), content.get("pre_tokenizer")]
    return any(map(_is_byte_level, steps)) and all(letter in vocab for letter in byte_letters())


def _is_byte_level(step: Any) -> bool:
    if isinstance(step, list):
        return any(map(_is_byte_level, step))
    if not isinstance(step, dict):
        return False
    parts = [step.get("normalizers"), step.get("pretokenizers")]
    return step.get("type") == "ByteLevel" or any(map(_is_byte_level, parts))


def byte_letters() -> list[str]:
    """GPT-2's letters for the bytes 0 to 255; bytes that do not print get U+0100 and on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
