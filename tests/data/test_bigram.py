"""The bigram baseline equals counting pair by pair, with dense and sparse tables."""

import collections
import math

import numpy as np
import pytest
from data_helpers import draw_texts, make_pipeline

from hybridlm.data import bigram, bigram_bits_per_byte


def by_hand(pipeline, sequences, k):
    pairs, context, unigram = collections.Counter(), collections.Counter(), collections.Counter()
    for split in pipeline.train_splits.values():
        offsets = split.document_offsets().tolist()
        for a, b in zip(offsets, offsets[1:]):
            tokens = split.read(a, b)[0].tolist()
            pairs.update(zip(tokens, tokens[1:]))
            context.update(tokens[:-1])
            unigram.update(tokens[1:])
    total, vocab = sum(unigram.values()), pipeline.tokenizer.vocab_size
    nats = tokens = size = 0
    for batch in pipeline.heldout_batches(4, sequences):
        real = batch["loss_weights"] > 0
        for a, b in zip(batch["tokens"][real].tolist(), batch["targets"][real].tolist()):
            prior = (unigram[b] + 1) / (total + vocab)
            nats -= math.log((pairs[a, b] + k * prior) / (context[a] + k))
            tokens, size = tokens + 1, size + (b < 256)
    return nats / tokens, nats / math.log(2) / size


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@pytest.mark.parametrize("dense", [4096, 0])
def test_equals_counting_by_hand(packing, dense, tmp_path, monkeypatch):
    monkeypatch.setattr(bigram, "_DENSE", dense)
    monkeypatch.setattr(bigram, "_READ", 700)  # several reads; no pair is lost between them
    documents = {n: draw_texts(np.random.default_rng(), 20) for n in "ab"}
    pipeline = make_pipeline(tmp_path, documents, packing=packing)
    for k in (0.5, 30.0):
        result = bigram_bits_per_byte(pipeline, 9, strength=k)
        nats, bits = by_hand(pipeline, 9, k)
        assert result.nats_per_token == pytest.approx(nats, rel=1e-10)
        assert result.bits_per_byte == pytest.approx(bits, rel=1e-10)


def test_the_selected_strength_is_close_to_the_best(tmp_path):
    pipeline = make_pipeline(tmp_path, {"a": draw_texts(np.random.default_rng(), 200)})
    chosen = bigram_bits_per_byte(pipeline, 100)
    best = min(
        bigram_bits_per_byte(pipeline, 100, strength=k).bits_per_byte for k in bigram._STRENGTHS
    )
    assert chosen.bits_per_byte < best * 1.02, (chosen, best)
    assert 0 < chosen.bits_per_byte < 8
