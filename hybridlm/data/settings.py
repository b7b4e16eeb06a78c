"""Settings of the data: sources, packing, and what else batches depend on."""

from typing import Annotated, Any, Literal

from hybridlm.data.sources import SourceConfig, read_source
from hybridlm.data.tokenizers import TokenizerConfig
from hybridlm.settings.bounds import LONGEST, Between, IsPath, NotEmpty, PositiveInt, settings

__all__ = ["DataConfig", "SourceConfig", "TokenizerConfig"]


@settings
class DataConfig:
    """The data, and how batches are made of it.

    Attributes:
      sources: settings by a name of your choice; each has a `kind` and that kind's own settings.
        Their weights define the mixture.
      seq_len: tokens per sequence.
      batch_size: sequences per global batch (all hosts, all accumulation steps).
      tokenizer: the tokenizer of all sources.
      packing: "concat" cuts the stream of documents into sequences; "best_fit" packs whole
        documents into sequences, cuts only documents longer than a sequence, and pads the rest.
      cross_document_attention: True treats a sequence as one document: each token attends to
        all earlier tokens of the sequence.
      heldout_fraction: share of documents held out for evaluation.
      verify: check the SHA-256 of shards and indices at each start ("checksum") or only their sizes
        ("size").
      token_cache: folder for the tokens of text and for the indices of token stores; None uses the
        workdir, so that each run writes its own.
      prefetch: batches read ahead.
      bigram_baseline: score a bigram model of the corpus on the held-out sequences at the start.
    """

    sources: Annotated[dict[str, Any], NotEmpty("names no source")]
    seq_len: Annotated[PositiveInt, LONGEST]
    batch_size: PositiveInt
    tokenizer: TokenizerConfig = TokenizerConfig()
    packing: Literal["concat", "best_fit"] = "concat"
    cross_document_attention: bool = False
    heldout_fraction: Annotated[float, Between(0, 1, low_open=True, high_open=True)] = 0.05
    verify: Literal["checksum", "size"] = "checksum"
    token_cache: Annotated[str, IsPath()] | None = None
    prefetch: PositiveInt = 4
    bigram_baseline: bool = False

    def __post_init__(self):
        sources = {n: read_source(s, f"data.sources.{n}") for n, s in self.sources.items()}
        object.__setattr__(self, "sources", sources)
