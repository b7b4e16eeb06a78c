"""The contents of a `tokenizer.json` with a byte-pair encoding, as the `tokenizers` package writes it."""

from collections.abc import Mapping, Sequence
from typing import Any


def content(
    tokens: Sequence[str],
    added: Mapping[int, bool],
    merges: Sequence[Sequence[str]],
    *,
    normalizer: dict[str, Any] | None,
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
    unknown: str | None = None,
    fuse_unknown: bool = False,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    """The contents, ready for JSON.

    Args:
      tokens: of each id.
      added: ids that are found in text before it is cut, each with whether it is special.
      merges: pairs of tokens, the first merged first.
      normalizer, pre_tokenizer, decoder: as in the file.
      unknown: the token of text that no other covers.
      fuse_unknown: whether neighbours of unknown text are one token.
      byte_fallback: whether unknown text becomes tokens of bytes.
      ignore_merges: whether a word that is a token is taken whole.
    """
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": tokens[i],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": special,
            }
            for i, special in added.items()
        ],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": fuse_unknown,
            "byte_fallback": byte_fallback,
            "ignore_merges": ignore_merges,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }
