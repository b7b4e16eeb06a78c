"""The baseline that every model must beat: a bigram model of the same tokens and sequences."""

import math
from typing import NamedTuple

import numpy as np

from hybridlm.data.pipeline import Pipeline
from hybridlm.data.store import loss_mask_of

_DENSE = 4096  # up to this vocabulary size pairs are counted in a dense table, above it sparsely
_READ = 1 << 22  # tokens read at once
_STRENGTHS = tuple(float(k) for k in 10.0 ** np.arange(-2, 5, 0.5))


class BigramResult(NamedTuple):
    """Scores of the bigram model on held-out sequences.

    Attributes:
      nats_per_token: mean cross-entropy over the targets.
      bits_per_byte: the summed cross-entropy in bits, divided by the UTF-8 bytes of the targets.
      tokens, bytes: the number of targets, and of their bytes.
      strength: the weight k of the unigram prior, in pseudo-counts.
    """

    nats_per_token: float
    bits_per_byte: float
    tokens: int
    bytes: int
    strength: float


class _Pairs(NamedTuple):
    """Counts of the pairs that occur; keys are prev * V + next, ascending."""

    keys: np.ndarray
    counts: np.ndarray


def bigram_bits_per_byte(
    pipeline: Pipeline, sequences: int, *, strength: float | None = None
) -> BigramResult:
    """Fits a bigram model on the training splits and scores the first held-out sequences.

    p(b | a) = (count(a, b) + k p(b)) / (count(a) + k), with p(b) = (count(b) + 1) / (N + V): pair
    counts interpolated with add-one unigrams (MacKay and Peto 1995, eq. 6). Every training token
    counts once; the weights of the sources are ignored. Pairs across documents count only if the
    pipeline's `cross_document_attention` makes them targets; where only answers count, so do only
    the pairs that end in one.

    Args:
      pipeline: provides the training splits, and the held-out sequences (`heldout_batches`).
      sequences: the number of held-out sequences; use that of the model's own evaluation.
      strength: k; None selects from 0.01 to 31,623 (in half-decades) the k that maximises the
        leave-one-out likelihood of the training pairs. Held-out text is not used for it.
    """
    vocab = pipeline.tokenizer.vocab_size
    pairs = _count_pairs(pipeline, vocab)
    prev, target = pairs.keys // vocab, pairs.keys % vocab
    context = np.bincount(prev, pairs.counts, vocab)
    unigram = np.bincount(target, pairs.counts, vocab) + 1.0
    unigram /= unigram.sum()

    if strength is None:
        # The occurrence is left out of both pair counts, but not of the unigrams.
        def leave_one_out(k: float) -> float:
            numerator = pairs.counts - 1 + k * unigram[target]
            return float(pairs.counts @ np.log(numerator / (context[prev] - 1 + k)))

        strength = max(_STRENGTHS, key=leave_one_out)

    sizes = pipeline.tokenizer.token_bytes()
    nats, tokens, size = 0.0, 0, 0
    for batch in pipeline.heldout_batches(16, sequences):
        scored = batch["loss_weights"] > 0
        a, b = batch["tokens"][scored].astype(np.int64), batch["targets"][scored].astype(np.int64)
        numerator = _lookup(pairs, a * vocab + b) + strength * unigram[b]
        nats -= float(np.log(numerator / (context[a] + strength)).sum())
        tokens += len(b)
        size += int(sizes[b].sum())
    return BigramResult(
        nats / max(tokens, 1), nats / math.log(2) / max(size, 1), tokens, size, strength
    )


def _count_pairs(pipeline: Pipeline, vocab: int) -> _Pairs:
    dense = np.zeros(vocab * vocab, np.int64) if vocab <= _DENSE else None
    pairs = _Pairs(np.empty(0, np.int64), np.empty(0, np.int64))
    for split in pipeline.train_splits.values():
        for start in range(0, split.tokens - 1, _READ):
            tokens, begins = split.read(start, min(start + _READ + 1, split.tokens))
            keys = tokens[:-1].astype(np.int64) * vocab + tokens[1:]
            counted = np.ones(len(keys), bool)
            if not pipeline.cross_document_attention:
                counted &= ~begins[1:]
            if (mask := loss_mask_of(split)) is not None:
                counted &= mask.read(start, start + len(tokens))[1:]
            keys = keys[counted]
            if dense is not None:
                dense += np.bincount(keys, minlength=vocab * vocab)
            else:
                pairs = _merge(pairs, _Pairs(*np.unique(keys, return_counts=True)))
    if dense is not None:
        keys = np.flatnonzero(dense)
        return _Pairs(keys, dense[keys])
    return pairs


def _merge(one: _Pairs, other: _Pairs) -> _Pairs:
    keys, index = np.unique(np.concatenate([one.keys, other.keys]), return_inverse=True)
    counts = np.bincount(index, np.concatenate([one.counts, other.counts]), len(keys))
    return _Pairs(keys, counts.astype(np.int64))


def _lookup(pairs: _Pairs, keys: np.ndarray) -> np.ndarray:
    """Counts of `keys`, 0 for pairs that do not occur; float64, the shape of `keys`."""
    at = np.minimum(np.searchsorted(pairs.keys, keys), len(pairs.keys) - 1)
    return np.where(pairs.keys[at] == keys, pairs.counts[at], 0).astype(np.float64)
