"""The task stream does what it says: copies are copies of what stood last, at the distance said."""

import numpy as np

from experiments.large_window_laziness import stream


def made(power=1.0):
    return stream.sequences(3, 0, stream.AT_ONCE, power)


def test_a_sequence_is_a_function_of_seed_and_index():
    across = stream.sequences(5, 500, 24)
    behind = stream.sequences(5, 512, 12)
    for a, b in zip(across.take(np.arange(12, 24)), behind):
        np.testing.assert_array_equal(a, b)
    assert (stream.sequences(6, 500, 24).tokens_NT != across.tokens_NT).any()


def test_copies_stand_where_they_say_and_nowhere_nearer():
    x = made()
    for tokens, kind, distance in zip(*x):
        for t in np.flatnonzero(kind == stream.COPY_START):
            d = distance[t]
            assert stream.NEAREST <= d <= stream.FURTHEST
            end = min(t + stream.SPAN, stream.LENGTH)
            np.testing.assert_array_equal(tokens[t:end], tokens[t - d : end - d])
            earlier = np.flatnonzero(tokens[:t] == tokens[t])
            assert t - earlier.max() == d or len(np.unique(tokens[tokens >= stream.LOCAL])) > 100
    copied = x.kind_NT == stream.COPIED_TOKEN
    assert 0.3 < copied.mean() < 0.4
    assert (x.distance_NT[copied | (x.kind_NT == stream.COPY_START)] > 0).all()


def test_distances_are_about_log_uniform():
    """A fifth of the copies in each doubling, fewer at the far end, which is not always there."""
    x = made()
    d = x.distance_NT[x.kind_NT == stream.COPY_START]
    shares = [((d >= a) & (d <= b)).mean() for a, b in stream.BINS]
    assert all(0.15 < share < 0.3 for share in shares[:-1]), shares
    assert 0.05 < shares[-1] < 0.2
    far = made(0.0).distance_NT[made(0.0).kind_NT == stream.COPY_START]
    assert (far >= stream.BINS[-1][0]).mean() > 2 * shares[-1]


def test_local_text_follows_its_table():
    x = made()
    later = x.kind_NT[:, 1:] == stream.LOCAL_TOKEN
    before, after = x.tokens_NT[:, :-1][later], x.tokens_NT[:, 1:][later]
    rank = (stream.successors()[before] == after[:, None]).argmax(axis=1)
    assert (stream.successors()[before, rank] == after).all()
    shares = np.bincount(rank, minlength=4) / len(rank)
    np.testing.assert_allclose(shares, stream.SUCCESSORS, atol=0.02)


def test_batch_is_that_of_the_trainer():
    batch = stream.batch(made().take(np.arange(3)))
    assert batch["tokens"].shape == (3, stream.LENGTH)
    np.testing.assert_array_equal(batch["targets"][:, :-1], batch["tokens"][:, 1:])
    counted = batch["loss_weights"][:, :-1] > 0
    kinds = made().kind_NT[:3, 1:]
    np.testing.assert_array_equal(
        counted, (kinds == stream.LOCAL_TOKEN) | (kinds == stream.COPIED_TOKEN)
    )
    assert not batch["loss_weights"][:, -1].any()
