"""Settings of the data: sources, tokenizer, packing."""

from typing import Annotated, Literal

from hybridlm.settings.bounds import Between, NotEmpty, PositiveFloat, PositiveInt, settings
from hybridlm.settings.reader import require


@settings
class SourceConfig:
    """A source of text.

    Attributes:
      kind: "text" (files), "jsonl" (also .gz and .zst), "parquet", "arrayrecord" (one UTF-8
        document per record), or "tokens" (a folder written by `hybridlm tokenize`).
      path: a file, a folder ("tokens") or a glob; relative paths start at the working
        directory.
      text_key: the field or column that holds the text.
      weight: share of this source in the mixture, relative to the other sources.
    """

    kind: Literal["text", "jsonl", "parquet", "arrayrecord", "tokens"]
    path: Annotated[str, NotEmpty()]
    text_key: Annotated[str, NotEmpty()] = "text"
    weight: PositiveFloat = 1.0


@settings
class TokenizerConfig:
    """The tokenizer.

    Attributes:
      kind: "bytes" (ids 0 to 255 are the bytes of UTF-8), "hf" (a Hugging Face
        `tokenizer.json`) or "sentencepiece" (a `.model` file).
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
    """The data, and how batches are made of it.

    Attributes:
      sources: sources of text, by a name of your choice; their weights define the mixture.
      seq_len: tokens per sequence.
      batch_size: sequences per global batch (all hosts, all accumulation steps).
      tokenizer: the tokenizer of all sources.
      packing: "concat" cuts the stream of documents into sequences; "best_fit" packs whole
        documents into sequences, cuts only documents longer than a sequence, and pads the rest.
      cross_document_attention: True treats a sequence as one document: each token attends to
        all earlier tokens of the sequence.
      heldout_fraction: share of documents held out for evaluation.
      verify: check the SHA-256 of the shards ("checksum") or only their sizes ("size").
      token_cache: folder for the tokens of raw-text sources; None uses the workdir.
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
