"""`hybridlm tokenize`."""

import os
import pathlib
from typing import Annotated

from hybridlm.commands.command import Command
from hybridlm.settings.bounds import Between, NotEmpty, PositiveInt, settings
from hybridlm.settings.text import read_options


@settings
class TokenizeSettings:
    """What is tokenized and how, and the folder of the shards.

    Attributes:
      source: file or glob.
      out: folder for the shards.
      kind: kind of the source, a kind of text: text, jsonl, parquet, arrayrecord, prompts, chat.
      text_key: field or column that has the text; default: text.
      tokenizer: bytes, hf or sentencepiece.
      tokenizer_path: file of an hf or sentencepiece tokenizer.
      heldout_fraction: share of documents held out for evaluation.
      processes: number of processes that encode text; default: the number of CPUs.
    """

    source: Annotated[str, NotEmpty()]
    out: pathlib.Path
    kind: str = "text"
    text_key: str | None = None
    tokenizer: str = "bytes"
    tokenizer_path: str | None = None
    heldout_fraction: Annotated[float, Between(0, 1, low_open=True, high_open=True)] = 0.05
    processes: PositiveInt | None = None


def _run(chosen: TokenizeSettings) -> int:
    from hybridlm import data
    from hybridlm.data.settings import TokenizerConfig
    from hybridlm.data.sources import text_source
    from hybridlm.progress import doing

    kind, path = chosen.tokenizer, chosen.tokenizer_path
    names = {"kind": "tokenizer", "path": "tokenizer_path"}
    tokenizer_config = read_options(TokenizerConfig, {"kind": kind, "path": path}, names)
    source = text_source(chosen.kind, chosen.source, chosen.text_key).on_this_machine()
    tokenizer = data.open_tokenizer(tokenizer_config)
    processes = chosen.processes or os.cpu_count() or 1
    with doing(f"tokenizing {chosen.source}"):
        data.tokenize(source, tokenizer, chosen.out, chosen.heldout_fraction, processes)
    opened = data.open_shards(chosen.out, tokenizer=tokenizer)
    for name, split in (("train", opened.train), ("heldout", opened.heldout)):
        print(
            f"{name}: {split.documents:,} documents, {split.tokens:,} tokens"
            f" ({split.unknown_tokens:,} unknown), {split.bytes:,} bytes of text,"
            f" {split.token_bytes:,} bytes of its tokens"
            + (f", {split.answer_tokens:,} tokens of answers" if split.loss_mask else "")
        )
    print(f"written to {chosen.out}")
    return 0


TOKENIZE = Command(
    "tokenize",
    "tokenize a source once, in parallel, and write token shards",
    lambda: (TokenizeSettings,),
    _run,
    loads="hybridlm.data",
)
