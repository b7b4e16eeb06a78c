"""The settings of data: sources, tokenizer, packing."""

from typing import Annotated, Literal

from hybridlm.settings.bounds import Between, NotEmpty, PositiveFloat, PositiveInt, settings
from hybridlm.settings.reader import require


@settings
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
    path: Annotated[str, NotEmpty()]
    text_key: Annotated[str, NotEmpty()] = "text"
    weight: PositiveFloat = 1.0


@settings
class TokenizerConfig:
    """How text becomes tokens.

    Attributes:
      kind: "bytes" (ids 0 to 255 are the bytes of UTF-8), "hf" (a `tokenizer.json` of Hugging Face
        tokenizers) or "sentencepiece" (a `.model` file).
      path: the tokenizer's file; None for "bytes".
    """

    kind: Literal["bytes", "hf", "sentencepiece"] = "bytes"
    path: str | None = None

    def __post_init__(self):
        if self.kind == "bytes":
            require(self.path is None, "path", "must be None for the byte tokenizer")
        else:
            require(bool(self.path), "path", f"must name the file of the {self.kind} tokenizer")


@settings
class DataConfig:
    """What is read, and how it becomes batches.

    Attributes:
      sources: where text comes from, by a name of your choice; their weights make the mixture.
      seq_len: tokens in a sequence.
      batch_size: sequences in a global batch (all hosts, all accumulation steps).
      tokenizer: how text becomes tokens.
      packing: "concat" cuts the stream of documents into windows; "best_fit" packs whole
        documents into windows (only longer ones are cut) and pads the rest.
      cross_document_attention: True makes a window one document, whose tokens see all before them.
      heldout_fraction: share of documents kept for evaluation.
      verify: compare shards with their SHA-256 ("checksum") or only their sizes ("size").
      token_cache: folder for tokens of raw-text sources; None puts them in the workdir.
      prefetch: batches read ahead.
      bigram_baseline: score a bigram model of the corpus on the held-out sequences at the start.
    """

    sources: Annotated[dict[str, SourceConfig], NotEmpty("names no source")]
    seq_len: PositiveInt
    batch_size: PositiveInt
    tokenizer: TokenizerConfig = TokenizerConfig()
    packing: Literal["concat", "best_fit"] = "concat"
    cross_document_attention: bool = False
    heldout_fraction: Annotated[float, Between(0, 1, low_open=True, high_open=True)] = 0.05
    verify: Literal["checksum", "size"] = "checksum"
    token_cache: str | None = None
    prefetch: PositiveInt = 4
    bigram_baseline: bool = False
