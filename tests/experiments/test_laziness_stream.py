"""The task stream: copies repeat the last occurrence of a chunk, at the stated distance."""

import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from experiments.large_window_laziness import stream


@pytest.fixture(params=stream.TASKS.values(), ids=list(stream.TASKS))
def task(request):
    return request.param


def made(task, power=1.0):
    return stream.sequences(task, 3, 0, stream.AT_ONCE, power)


def test_a_sequence_depends_on_seed_and_index_only(task):
    across = stream.sequences(task, 5, 500, 24)
    behind = stream.sequences(task, 5, 512, 12)
    for a, b in zip(across.take(np.arange(12, 24)), behind):
        np.testing.assert_array_equal(a, b)
    assert (stream.sequences(task, 6, 500, 24).tokens_NT != across.tokens_NT).any()


def test_copies_have_their_stated_distance(task):
    x = made(task)
    for tokens, kind, distance in zip(*x):
        for t in np.flatnonzero(kind == stream.COPY_START):
            d = distance[t]
            assert task.nearest <= d <= task.furthest
            end = min(t + task.span, task.length)
            np.testing.assert_array_equal(tokens[t:end], tokens[t - d : end - d])
    copied = x.kind_NT == stream.COPIED_TOKEN
    assert 0.12 < copied.mean() < 0.4
    assert (x.distance_NT[copied | (x.kind_NT == stream.COPY_START)] > 0).all()
    assert x.tokens_NT.max() < task.vocab


def test_no_nearer_token_has_the_answer():
    """While no symbol is in two chunks, the nearest equal token is at the stated distance."""
    task, checked = stream.MAIN, 0
    for tokens, kind, distance in zip(*made(task)):
        new = (kind == stream.NEW_TOKEN) & (tokens >= task.local)
        unique = new.sum() < task.content
        for t in np.flatnonzero(kind == stream.COPY_START) if unique else ():
            assert t - np.flatnonzero(tokens[:t] == tokens[t]).max() == distance[t]
            checked += 1
    assert checked > 1000


def test_distances_are_about_log_uniform():
    """As many copies per doubling, but fewer at distances that few tokens have."""
    x, far = made(stream.LARGE), made(stream.LARGE, 0.0)
    d, d_far = (y.distance_NT[y.kind_NT == stream.COPY_START] for y in (x, far))
    bins = stream.LARGE.bins
    assert stream.MAIN.bins == ((5, 7), (8, 15), (16, 31), (32, 63))
    shares = [((d >= a) & (d <= b)).mean() for a, b in bins]
    assert all(0.1 < share < 0.3 for share in shares[:-1]), shares
    assert 0.05 < shares[-1] < 0.2
    assert (d_far >= bins[-1][0]).mean() > 2 * shares[-1]


def test_a_far_stream_copies_from_far_only(task):
    far = task._replace(closest=task.bins[-1][0])
    x = made(far)
    d = x.distance_NT[x.kind_NT == stream.COPY_START]
    assert len(d) > stream.AT_ONCE and d.min() >= far.closest and d.max() <= task.furthest


def test_local_text_follows_the_table_of_successors(task):
    """A counted token is a likely successor of the two or three symbols before it."""
    x, table = made(task), stream.successors(task.local)
    rows, at = np.nonzero(x.kind_NT == stream.LOCAL_TOKEN)
    assert at.min() >= 2
    last, second, third = (x.tokens_NT[rows, np.maximum(at - n, 0)] for n in (1, 2, 3))
    third = np.where(last % 2, third, 0)  # an even last symbol makes the third irrelevant
    rank = (table[third, second, last] == x.tokens_NT[rows, at][:, None]).argmax(axis=1)
    assert (table[third, second, last, rank] == x.tokens_NT[rows, at]).all()
    shares = np.bincount(rank, minlength=4) / len(rank)
    np.testing.assert_allclose(shares, stream.SUCCESSORS, atol=0.03)


def test_two_symbols_do_not_predict_local_text(task):
    """The third matters where the last is odd, and only there."""
    table = stream.successors(task.local)
    assert (table[:, :, ::2] == table[:1, :, ::2]).all()
    assert (table[1:, :, 1::2] != table[:1, :, 1::2]).any(axis=-1).mean() > 0.9


def test_a_batch_has_the_trainers_layout(task):
    some = made(task).take(np.arange(3))
    batch = stream.batch(some)
    assert batch["tokens"].shape == (3, task.length)
    np.testing.assert_array_equal(batch["targets"][:, :-1], batch["tokens"][:, 1:])
    kinds = some.kind_NT[:, 1:]
    np.testing.assert_array_equal(
        batch["loss_weights"][:, :-1] > 0,
        (kinds == stream.LOCAL_TOKEN) | (kinds == stream.COPIED_TOKEN),
    )
    assert not batch["loss_weights"][:, -1].any()
