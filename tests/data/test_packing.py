"""Packing: each target occurs once, documents can be rebuilt, segments, positions, padding."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.data.packing import (
    best_fit,
    best_fit_sequence,
    concat_count,
    concat_range,
    concat_sequence,
    empty_sequence,
)

BOS, EOS = 1000, 1001
# A document of length -1 is a single token, as token stores of other programs may hold.
lengths = st.lists(st.integers(-1, 40), min_size=1, max_size=30).filter(lambda n: max(n) >= 0)
seq_lens = st.integers(1, 33)


def make_split(lengths):
    """(tokens, offsets) of documents BOS + ids + EOS; ids are unique over the split."""
    documents, base = [], 0
    for n in lengths:
        ids = range(2000 + base, 2000 + base + n)
        documents.append([BOS, *ids, EOS] if n >= 0 else [BOS])
        base += max(n, 0)
    offsets = np.concatenate([[0], np.cumsum([len(d) for d in documents])])
    return np.concatenate(documents), offsets, documents


def make_sequences(method, lengths, seq_len, cross=False):
    tokens, offsets, documents = make_split(lengths)
    begins = np.zeros(len(tokens), bool)
    begins[offsets[:-1]] = True
    if method == "concat":
        ranges = [
            concat_range(i, len(tokens), seq_len) for i in range(concat_count(len(tokens), seq_len))
        ]
        sequences = [concat_sequence(tokens[a:b], begins[a:b], seq_len, cross) for a, b in ranges]
    else:
        packing = best_fit(offsets, seq_len)
        sequences = []
        for first, last in zip(packing.first[:-1], packing.first[1:]):
            spans = zip(packing.starts[first:last], packing.lengths[first:last])
            pieces = [tokens[start : start + n + 1] for start, n in spans]
            sequences.append(best_fit_sequence(pieces, seq_len, cross))
    return sequences, tokens, documents


METHODS = pytest.mark.parametrize("method", ["concat", "best_fit"])


@METHODS
@settings(max_examples=80, deadline=None)
@given(lengths=lengths, seq_len=seq_lens)
def test_each_target_occurs_once_within_its_document(method, lengths, seq_len):
    sequences, tokens, documents = make_sequences(method, lengths, seq_len)
    counted = [
        (int(a), int(b))
        for row in sequences
        for a, b in zip(row.tokens[row.loss_weights > 0], row.targets[row.loss_weights > 0])
    ]
    expected = [pair for d in documents for pair in zip(d, d[1:])]
    assert sorted(counted) == sorted(expected)


@settings(max_examples=80, deadline=None)
@given(lengths=lengths, seq_len=seq_lens)
def test_concat_with_cross_document_attention_targets_the_whole_stream(lengths, seq_len):
    sequences, tokens, _ = make_sequences("concat", lengths, seq_len, cross=True)
    targets = np.concatenate([row.targets[row.loss_weights > 0] for row in sequences])
    np.testing.assert_array_equal(targets, tokens[1:])


@METHODS
@pytest.mark.parametrize("cross", [False, True])
@settings(max_examples=60, deadline=None)
@given(lengths=lengths, seq_len=seq_lens)
def test_segments_positions_and_padding(method, cross, lengths, seq_len):
    for row in make_sequences(method, lengths, seq_len, cross)[0]:
        dtypes = [str(a.dtype) for a in row]
        assert dtypes == ["int32", "int32", "float32", "int32", "int32"]
        assert {a.shape for a in row} == {(seq_len,)}
        real = row.segment_ids > 0
        n = int(real.sum())
        assert n and real[:n].all(), "padding is not at the end"
        for array in row:
            assert not array[n:].any()
        assert set(np.unique(row.loss_weights)) <= {0, 1}
        segments = row.segment_ids[:n]
        if cross:
            assert (segments == 1).all()
            assert row.loss_weights[:n].all()
            np.testing.assert_array_equal(row.positions[:n], np.arange(n))
            continue
        # A segment begins at the start of the sequence and at a document's first token only.
        steps = np.diff(segments)
        assert segments[0] == 1 and set(steps.tolist()) <= {0, 1}
        if method == "concat":
            np.testing.assert_array_equal(steps == 1, row.tokens[1:n] == BOS)
        starts = np.concatenate([[True], steps == 1])
        assert (row.positions[:n][starts] == 0).all()
        np.testing.assert_array_equal(np.diff(row.positions[:n])[steps == 0], 1)
        # Within a segment the target is the next token.
        inside = np.flatnonzero(steps == 0)
        np.testing.assert_array_equal(row.targets[inside], row.tokens[inside + 1])
        np.testing.assert_array_equal(row.loss_weights[inside], 1)


@settings(max_examples=80, deadline=None)
@given(lengths=lengths, seq_len=seq_lens)
def test_best_fit_rebuilds_documents(lengths, seq_len):
    sequences, _, documents = make_sequences("best_fit", lengths, seq_len)
    pieces = []
    for row in sequences:
        for s in range(1, row.segment_ids.max() + 1):
            here = row.segment_ids == s
            pieces.append([*row.tokens[here].tolist(), int(row.targets[here][-1])])
    for document in documents:
        if len(document) == 1:  # no target, so no piece
            continue
        if len(document) == 2:  # documents without text are identical
            assert [BOS, EOS] in pieces
            pieces.remove([BOS, EOS])
            continue
        # Join the pieces: the last token of a piece is the first of the next.
        rebuilt = next(p for p in pieces if p[:2] == document[:2])
        pieces.remove(rebuilt)
        whole = len(document) <= seq_len + 1
        assert (rebuilt == document) == whole, "only documents longer than a sequence are cut"
        rebuilt = list(rebuilt)
        while len(rebuilt) < len(document):
            piece = next(p for p in pieces if p[0] == rebuilt[-1])
            pieces.remove(piece)
            rebuilt += piece[1:]
        assert rebuilt == document
    assert not pieces


def naive_best_fit(places, seq_len):
    """Best-fit-decreasing, piece by piece: the lengths in each sequence."""
    sequences = []
    for n in sorted(places, reverse=True):
        free = [
            (seq_len - sum(row), i) for i, row in enumerate(sequences) if seq_len - sum(row) >= n
        ]
        if free:
            sequences[min(free)[1]].append(n)
        else:
            sequences.append([n])
    return sequences


@settings(max_examples=150, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=120), seq_len=seq_lens)
def test_best_fit_equals_packing_piece_by_piece(lengths, seq_len):
    _, offsets, _ = make_split(lengths)
    packing = best_fit(offsets, seq_len)
    sequences = np.split(packing.lengths, packing.first[1:-1])
    naive = naive_best_fit(packing.lengths.tolist(), seq_len)
    assert max(row.sum() for row in sequences) <= seq_len
    # Sequences of equal free space are interchangeable, so only the filled lengths are compared.
    assert sorted(int(row.sum()) for row in sequences) == sorted(sum(row) for row in naive)


def test_best_fit_of_a_hundred_thousand_documents_is_fast_and_full():
    rng = np.random.default_rng()
    sizes = np.maximum(2, rng.lognormal(6, 1, 100_000)).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    start = time.perf_counter()
    packing = best_fit(offsets, 1024)
    seconds = time.perf_counter() - start
    assert seconds < 5, f"{seconds:.1f} s"
    fill = packing.lengths.sum() / (packing.sequences * 1024)
    assert fill > 0.99, f"{fill:.3f} of the positions are filled"
    again = best_fit(offsets, 1024)
    for one, other in zip(packing, again):
        np.testing.assert_array_equal(one, other)


def test_no_documents_make_no_sequences():
    assert best_fit(np.array([0]), 8).sequences == 0
    assert concat_count(0, 8) == 0
    assert not any(a.any() for a in empty_sequence(8))
