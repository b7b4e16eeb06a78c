"""The SentencePiece vocabulary in a GGUF file (Llama 2, Mistral, Gemma) as a `tokenizer.json`.

GGUF keeps the pieces with their scores and types. SentencePiece merges the pair of neighbours whose
piece has the highest score, and the leftmost of equal ones: a byte-pair encoding whose merges are all
splits of all pieces, the highest scores first.
"""

from collections.abc import Sequence
from typing import Any

from hybridlm.data import bpe_json

SPACE = "\u2581"  # of SentencePiece
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of tokens


def content(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], *, prefix: bool
) -> dict[str, Any]:
    """The contents of a tokenizer.json.

    Args:
      tokens, scores, types: of each id.
      prefix: whether a space is put before a text.
    """
    unknown = next((t for t, kind in zip(tokens, types) if kind == UNKNOWN), None)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    normalizers = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    # A run of spaces is merged from its parts.
    added = {
        i: kind != USER_DEFINED
        for i, (token, kind) in enumerate(zip(tokens, types))
        if kind in (CONTROL, UNKNOWN) or (kind == USER_DEFINED and SPACE not in token)
    }
    return bpe_json.content(
        tokens,
        added,
        merges(tokens, scores, types),
        normalizer={"type": "Sequence", "normalizers": [*normalizers, replace]},
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": decoders},
        unknown=unknown,
        fuse_unknown=True,
        byte_fallback=BYTE in types,
    )


def merges(tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> list[list[str]]:
    """All splits of pieces into two pieces, those of the highest scores first."""
    pieces = {
        token: i
        for i, (token, kind) in enumerate(zip(tokens, types))
        if kind in (NORMAL, USER_DEFINED)
    }
    found = [
        (-scores[i], pieces[token[:cut]], pieces[token[cut:]], token[:cut], token[cut:])
        for token, i in pieces.items()
        for cut in range(1, len(token))
        if token[:cut] in pieces and token[cut:] in pieces
    ]
    return [[left, right] for *_, left, right in sorted(found)]
