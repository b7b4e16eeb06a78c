"""The needle task's grid of depths, and MQAR by direct recomputation."""

import re

import numpy as np
import pytest

from hybridlm.errors import UserError
from hybridlm.evals.mqar import accuracy, gap_distribution, mqar
from hybridlm.evals.needle import DEPTHS, NeedleInAHaystack


@pytest.mark.parametrize("name, length", [("bytes", 256), ("bpe", 512)])
def test_needle_samples_cycle_through_the_depths(tokenizers, name, length):
    tokenizer, task = tokenizers[name], NeedleInAHaystack()
    assert len(DEPTHS) == 10 and DEPTHS[0] == 0 and DEPTHS[-1] == 100
    for index in range(20):
        s = task.sample(tokenizer, length, 0, index)
        assert s.depths == (DEPTHS[index % 10],)
        assert length - 32 - 15 <= len(s.tokens) <= length - 32
        ((key, value),) = re.findall(r"The magic number for (\S+) is (\d{7})\.", s.prompt)
        assert s.references == (value,)
        assert s.answer_prefix == f"\nThe magic number for {key} is"
        assert value in tokenizer.decode(s.tokens[slice(*s.value_spans[0])])


@pytest.mark.parametrize("random_filler", [True, False])
@pytest.mark.parametrize("length, pairs, vocab", [(64, 4, 100), (64, 16, 8192), (8, 2, 12)])
def test_mqar_targets_are_the_values_of_the_keys(length, pairs, vocab, random_filler):
    made = mqar(length, pairs, 5, seed=1, vocab_size=vocab, random_filler=random_filler)
    half = vocab // 2
    for row in range(5):
        tokens = made.tokens[row]
        keys, values = tokens[0 : 2 * pairs : 2].tolist(), tokens[1 : 2 * pairs : 2].tolist()
        assert len(set(keys)) == len(set(values)) == pairs
        assert all(1 <= k < half for k in keys) and all(half <= v < vocab for v in values)
        asked = np.flatnonzero(made.loss_weights[row])
        assert len(asked) == pairs and asked.min() >= 2 * pairs and not np.any(asked % 2)
        for place in asked:  # the token after the key's first occurrence
            assert made.targets[row, place] == values[keys.index(tokens[place])]
        assert {int(tokens[p]) for p in asked} == set(keys)
        rest = np.setdiff1d(np.arange(2 * pairs, length), asked)
        if random_filler:
            assert tokens[rest].min() >= 0 and tokens[rest].max() < vocab
        else:
            assert not np.any(tokens[rest])
        assert not np.any(made.targets[row, rest])
    assert np.all(made.segment_ids == 1) and np.array_equal(made.positions[0], np.arange(length))
    assert accuracy(made.targets, made) == 1.0
    assert accuracy(np.where(made.targets % 2 == 0, made.targets, -1), made) < 1.0


def test_query_gaps_have_the_published_distribution():
    """With one key, its slot has p(g) proportional to g^(a-1); a = 1 is uniform."""
    made = mqar(22, 1, 4000, seed=0, power=0.01)
    expected = np.arange(1.0, 11.0) ** -0.99
    shares = np.bincount(made.gaps[:, 0], minlength=10) / 4000
    np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.025)
    np.testing.assert_allclose(gap_distribution(22, 1, 1.0), np.full(10, 0.1))
    assert all(len(set(row)) == 8 for row in mqar(64, 8, 30, seed=2).gaps.tolist())


def test_mqar_batches_depend_on_seed_and_index_alone():
    one, again, other = (mqar(64, 4, 3, seed=0, index=i) for i in (2, 2, 3))
    np.testing.assert_array_equal(one.tokens, again.tokens)
    assert np.any(one.tokens != other.tokens)
    assert set(one.batch()) == {"tokens", "targets", "loss_weights", "segment_ids", "positions"}


@pytest.mark.parametrize("words", [(64, 17), (63, 4), (64, 0)])
def test_pairs_that_do_not_fit_are_refused(words):
    with pytest.raises(UserError, match="needs an even length of at least 4 times"):
        mqar(*words, 1, seed=0)
    with pytest.raises(UserError, match="it has 4 keys: pairs must be at most 4"):
        mqar(64, 5, 1, seed=0, vocab_size=10)
