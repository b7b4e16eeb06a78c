"""Packing laws: no target lost or doubled, documents rebuilt, segments, positions and padding."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridlm.data.packing import (
    best_fit,
    concat_range,
    concat_window,
    concat_windows,
    empty_window,
    packed_window,
)

BOS, EOS = 1000, 1001
lengths = st.lists(st.integers(0, 40), min_size=1, max_size=30)
seq_lens = st.integers(1, 33)


def make_split(lengths):
    """(tokens, offsets) of documents BOS + ids + EOS; ids are unique over the split."""
    documents, base = [], 0
    for n in lengths:
        documents.append([BOS, *range(2000 + base, 2000 + base + n), EOS])
        base += n
    offsets = np.concatenate([[0], np.cumsum([len(d) for d in documents])])
    return np.concatenate(documents), offsets, documents


def make_windows(method, lengths, seq_len, cross=False):
    tokens, offsets, documents = make_split(lengths)
    begins = np.zeros(len(tokens), bool)
    begins[offsets[:-1]] = True
    if method == "concat":
        ranges = [
            concat_range(i, len(tokens), seq_len)
            for i in range(concat_windows(len(tokens), seq_len))
        ]
        windows = [concat_window(tokens[a:b], begins[a:b], seq_len, cross) for a, b in ranges]
    else:
        packing = best_fit(offsets, seq_len)
        windows = []
        for first, last in zip(packing.first[:-1], packing.first[1:]):
            spans = zip(packing.starts[first:last], packing.lengths[first:last])
            pieces = [tokens[start : start + n + 1] for start, n in spans]
            windows.append(packed_window(pieces, seq_len, cross))
    return windows, tokens, documents


METHODS = pytest.mark.parametrize("method", ["concat", "best_fit"])


@METHODS
@settings(max_examples=80, deadline=None)
@given(lengths=lengths, seq_len=seq_lens)
def test_every_target_once_and_in_its_document(method, lengths, seq_len):
    windows, tokens, documents = make_windows(method, lengths, seq_len)
    counted = [
        (int(a), int(b))
        for w in windows
        for a, b in zip(w.tokens[w.loss_weights > 0], w.targets[w.loss_weights > 0])
    ]
    expected = [pair for d in documents for pair in zip(d, d[1:])]
    assert sorted(counted) == sorted(expected)


@settings(max_examples=80, deadline=None)
@given(lengths=lengths, seq_len=seq_lens)
def test_concat_with_cross_document_attention_targets_the_whole_stream(lengths, seq_len):
    windows, tokens, _ = make_windows("concat", lengths, seq_len, cross=True)
    targets = np.concatenate([w.targets[w.loss_weights > 0] for w in windows])
    np.testing.assert_array_equal(targets, tokens[1:])


@METHODS
@pytest.mark.parametrize("cross", [False, True])
@settings(max_examples=60, deadline=None)
@given(lengths=lengths, seq_len=seq_lens)
def test_segments_positions_and_padding(method, cross, lengths, seq_len):
    for w in make_windows(method, lengths, seq_len, cross)[0]:
        dtypes = [str(a.dtype) for a in w]
        assert dtypes == ["int32", "int32", "float32", "int32", "int32"]
        assert {a.shape for a in w} == {(seq_len,)}
        real = w.segment_ids > 0
        n = int(real.sum())
        assert n and real[:n].all(), "padding lies at the end"
        for array in w:
            assert not array[n:].any()
        assert set(np.unique(w.loss_weights)) <= {0, 1}
        segments = w.segment_ids[:n]
        if cross:
            assert (segments == 1).all()
            assert w.loss_weights[:n].all()
            np.testing.assert_array_equal(w.positions[:n], np.arange(n))
            continue
        # A document's first token, and nothing else but the window's start, begins a segment.
        steps = np.diff(segments)
        assert segments[0] == 1 and set(steps.tolist()) <= {0, 1}
        if method == "concat":
            np.testing.assert_array_equal(steps == 1, w.tokens[1:n] == BOS)
        starts = np.concatenate([[True], steps == 1])
        assert (w.positions[:n][starts] == 0).all()
        np.testing.assert_array_equal(np.diff(w.positions[:n])[steps == 0], 1)
        # Inside a segment the target is the next token.
        inside = np.flatnonzero(steps == 0)
        np.testing.assert_array_equal(w.targets[inside], w.tokens[inside + 1])
        np.testing.assert_array_equal(w.loss_weights[inside], 1)


@settings(max_examples=80, deadline=None)
@given(lengths=lengths, seq_len=seq_lens)
def test_best_fit_rebuilds_documents(lengths, seq_len):
    windows, _, documents = make_windows("best_fit", lengths, seq_len)
    pieces = []
    for w in windows:
        for s in range(1, w.segment_ids.max() + 1):
            here = w.segment_ids == s
            pieces.append([*w.tokens[here].tolist(), int(w.targets[here][-1])])
    for document in documents:
        if len(document) == 2:  # documents without text are alike
            assert [BOS, EOS] in pieces
            pieces.remove([BOS, EOS])
            continue
        # Follow it from its first token; a piece's last token is the next piece's first.
        rebuilt = next(p for p in pieces if p[:2] == document[:2])
        pieces.remove(rebuilt)
        whole = len(document) <= seq_len + 1
        assert (rebuilt == document) == whole, "a document that fits is cut, or a long one is not"
        rebuilt = list(rebuilt)
        while len(rebuilt) < len(document):
            piece = next(p for p in pieces if p[0] == rebuilt[-1])
            pieces.remove(piece)
            rebuilt += piece[1:]
        assert rebuilt == document
    assert not pieces


def naive_best_fit(places, seq_len):
    """Best-fit-decreasing, one piece after the other: the lengths in each window."""
    windows = []
    for n in sorted(places, reverse=True):
        rooms = [(seq_len - sum(w), i) for i, w in enumerate(windows) if seq_len - sum(w) >= n]
        if rooms:
            windows[min(rooms)[1]].append(n)
        else:
            windows.append([n])
    return windows


@settings(max_examples=150, deadline=None)
@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=120), seq_len=seq_lens)
def test_best_fit_packs_as_tightly_as_one_by_one(lengths, seq_len):
    _, offsets, _ = make_split(lengths)
    packing = best_fit(offsets, seq_len)
    windows = np.split(packing.lengths, packing.first[1:-1])
    naive = naive_best_fit(packing.lengths.tolist(), seq_len)
    assert max(w.sum() for w in windows) <= seq_len
    # Windows of equal room are interchangeable, so what each is filled to is what can be compared.
    assert sorted(int(w.sum()) for w in windows) == sorted(sum(w) for w in naive)


def test_best_fit_of_a_hundred_thousand_documents_is_fast_and_full():
    rng = np.random.default_rng()
    sizes = np.maximum(2, rng.lognormal(6, 1, 100_000)).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    start = time.perf_counter()
    packing = best_fit(offsets, 1024)
    seconds = time.perf_counter() - start
    assert seconds < 5, f"{seconds:.1f} s"
    fill = packing.lengths.sum() / (packing.windows * 1024)
    assert fill > 0.99, f"{fill:.3f} of the places are filled"
    again = best_fit(offsets, 1024)
    for one, other in zip(packing, again):
        np.testing.assert_array_equal(one, other)


def test_no_document_no_window():
    assert best_fit(np.array([0]), 8).windows == 0
    assert concat_windows(0, 8) == 0
    assert not any(a.any() for a in empty_window(8))
