"""The settings of data: sources, tokenizer, packing."""

import dataclasses
from typing import Literal

from hybridlm.settings.reader import require


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Where text comes from.

    Attributes:
      kind: "text" (files), "jsonl" (also .gz and .zst), "parquet", "arrayrecord" (one UTF-8
        document a record), or "tokens" (a folder that `hybridlm tokenize` wrote).
      path: a file, a folder ("tokens") or a glob; relative paths count from the working directory.
      text_key: the field or column that holds the text.
      weight: share of this source in the mixture, relative to the others'.
    """

    kind: Literal["text", "jsonl", "parquet", "arrayrecord", "tokens"]
    path: str
    text_key: str = "text"
    weight: float = 1.0

    def __post_init__(self):
        require(bool(self.path), "path", "is empty")
        require(bool(self.text_key), "text_key", "is empty")
        require(self.weight > 0, "weight", f"must be positive, not {self.weight}")


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes tokens: "bytes", or a "hf" `tokenizer.json`, or a "sentencepiece" model."""

    kind: Literal["bytes", "hf", "sentencepiece"] = "bytes"
    path: str | None = None

    def __post_init__(self):
        if self.kind == "bytes":
            require(self.path is None, "path", "must be None for the byte tokenizer")
        else:
            require(bool(self.path), "path", f"must name the file of the {self.kind} tokenizer")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read, and how it becomes batches.

    Attributes:
      sources: by name; their weights make the mixture.
      seq_len: tokens in a sequence.
      batch_size: sequences in a global batch (all hosts, all accumulation steps).
      packing: "concat" cuts the stream of documents into windows; "best_fit" packs whole
        documents into windows (only longer ones are cut) and pads the rest.
      cross_document_attention: True lets a window be one document.
      heldout_fraction: share of documents kept for evaluation.
      verify: compare shards with their SHA-256 ("checksum") or only their sizes ("size").
      token_cache: folder for tokens of raw-text sources; None puts them in the workdir.
      prefetch: batches read ahead.
      bigram_baseline: score a bigram model of the corpus on the held-out sequences at the start.
    """

    sources: dict[str, SourceConfig]
    seq_len: int
    batch_size: int
    tokenizer: TokenizerConfig = TokenizerConfig()
    packing: Literal["concat", "best_fit"] = "concat"
    cross_document_attention: bool = False
    heldout_fraction: float = 0.05
    verify: Literal["checksum", "size"] = "checksum"
    token_cache: str | None = None
    prefetch: int = 4
    bigram_baseline: bool = False

    def __post_init__(self):
        require(bool(self.sources), "sources", "names no source")
        for name in ("seq_len", "batch_size", "prefetch"):
            require(
                getattr(self, name) >= 1, name, f"must be at least 1, not {getattr(self, name)}"
            )
        require(
            0 < self.heldout_fraction < 1,
            "heldout_fraction",
            f"must lie between 0 and 1, not {self.heldout_fraction}",
        )
