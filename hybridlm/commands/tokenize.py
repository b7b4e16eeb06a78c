"""`hybridlm tokenize`."""

import dataclasses
import os
import pathlib

from hybridlm.commands.command import Command
from hybridlm.settings.reader import require
from hybridlm.settings.text import read_options


@dataclasses.dataclass(frozen=True)
class TokenizeSettings:
    """What is tokenized, how, and where the shards go.

    Attributes:
      source: file or glob.
      out: folder to write.
      kind: text, jsonl, parquet or arrayrecord.
      text_key: field or column of the text.
      tokenizer: bytes, hf or sentencepiece.
      tokenizer_path: file of an hf or sentencepiece tokenizer.
      heldout_fraction: share of documents kept for evaluation.
      processes: processes that encode text; as many as there are CPUs by default.
    """

    source: str
    out: pathlib.Path
    kind: str = "text"
    text_key: str = "text"
    tokenizer: str = "bytes"
    tokenizer_path: str | None = None
    heldout_fraction: float = 0.05
    processes: int | None = None

    def __post_init__(self):
        require(bool(self.source), "source", "is empty: name a file or a glob")
        require(
            0 < self.heldout_fraction < 1,
            "heldout_fraction",
            f"must lie between 0 and 1, not {self.heldout_fraction}",
        )
        require(
            self.processes is None or self.processes >= 1,
            "processes",
            f"must be at least 1, not {self.processes}",
        )


def _run(settings: TokenizeSettings) -> int:
    from hybridlm import data
    from hybridlm.data.settings import SourceConfig, TokenizerConfig

    kind, path = settings.tokenizer, settings.tokenizer_path
    names = {"kind": "tokenizer", "path": "tokenizer_path"}
    chosen = read_options(TokenizerConfig, {"kind": kind, "path": path}, names)
    source = {"kind": settings.kind, "path": settings.source, "text_key": settings.text_key}
    tokenizer = data.open_tokenizer(chosen)
    data.tokenize(
        read_options(SourceConfig, source),
        tokenizer,
        settings.out,
        settings.heldout_fraction,
        settings.processes or os.cpu_count() or 1,
    )
    opened = data.open_shards(settings.out, tokenizer=tokenizer)
    for name, split in (("train", opened.train), ("heldout", opened.heldout)):
        print(
            f"{name}: {split.documents:,} documents, {split.tokens:,} tokens, {split.bytes:,} bytes"
        )
    print(f"written to {settings.out}")
    return 0


TOKENIZE = Command(
    "tokenize",
    "write token shards of a source, once, in parallel",
    lambda: (TokenizeSettings,),
    _run,
)
