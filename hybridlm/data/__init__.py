"""Sources, tokenizers, token shards, packing, mixtures, and the pipeline that makes batches.

    pipeline = open_pipeline(config.data, seed=config.seed, workdir=workdir)
    for batch in pipeline.iterate(start_step): ...

This package uses numpy only; it touches no device.
"""

from hybridlm.data.bigram import BigramResult, bigram_bits_per_byte
from hybridlm.data.epochs import Seen, seen
from hybridlm.data.examples import Document
from hybridlm.data.packing import PackedSequence
from hybridlm.data.pipeline import Batch, Pipeline, open_pipeline
from hybridlm.data.shards import Shards, open_shards
from hybridlm.data.source import SourceConfig
from hybridlm.data.tokenization import tokenize
from hybridlm.data.tokenizers import Tokenizer, open_tokenizer, train_bpe

__all__ = [
    "Batch",
    "BigramResult",
    "Document",
    "PackedSequence",
    "Pipeline",
    "Seen",
    "Shards",
    "SourceConfig",
    "Tokenizer",
    "bigram_bits_per_byte",
    "open_pipeline",
    "open_shards",
    "open_tokenizer",
    "seen",
    "tokenize",
    "train_bpe",
]
