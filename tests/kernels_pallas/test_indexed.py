"""Equalities and refusals of indexed attention; whole mixers hold the laws in tests/models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kernels_pallas.attention import attention
from kernels_pallas.indexed import IndexedState, chosen_keys, indexed_attention
from kernels_pallas.indexed.choice import largest
from kernels_pallas.testing import Subject, check_contained, draw_segment_ids, normal

B, T, H, G, K, V, INDEX_HEADS, J = 2, 40, 4, 2, 6, 5, 3, 4


def drawn(seed, time=T):
    rng = np.random.default_rng(seed)
    shapes = (H, K), (G, K), (G, V), (INDEX_HEADS, J), (J,), (INDEX_HEADS,)
    arrays = [jnp.asarray(rng.standard_normal((B, time, *s)), jnp.float32) for s in shapes]
    return rng, arrays


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_a_top_k_that_covers_the_documents_is_full_attention(impl):
    rng, arrays = drawn(0)
    ids = draw_segment_ids(rng, B, T, padding=0.2)
    longest = max(np.bincount(row[row > 0], minlength=1).max() for row in np.asarray(ids))
    out, _ = indexed_attention(*arrays, top_k=int(longest), segment_ids=ids, impl=impl)
    want, _ = attention(*arrays[:3], segment_ids=ids)
    np.testing.assert_allclose(out, want, atol=2e-6)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_a_query_sees_the_tokens_that_numpy_ranks_first(impl):
    """Values that name their token show which ones have a weight."""
    _, (q, k, _, index_q, index_k, index_w) = drawn(1)
    names = jnp.broadcast_to(jnp.eye(T)[None, :, None], (B, T, G, T))
    out, _ = indexed_attention(q, k, names, index_q, index_k, index_w, top_k=5, impl=impl)
    products = np.einsum("btij,bsj->btis", index_q, index_k)
    scores = np.einsum("bti,btis->bts", index_w, np.maximum(products, 0))
    for b in range(B):
        for t in range(T):
            order = np.argsort(-scores[b, t, : t + 1], kind="stable")[:5]
            for h in range(H):
                assert set(np.flatnonzero(np.asarray(out[b, t, h]))) == set(order)


@pytest.mark.parametrize("tail", [True, False])
def test_a_query_sees_the_pools_that_numpy_ranks_first(tail):
    """In both forms, of documents of any length; the first and last pool of each too."""
    rng, (q, k, _, index_q, index_k, index_w) = drawn(5)
    ids = np.asarray(draw_segment_ids(rng, B, T, padding=0.2))
    names = jnp.broadcast_to(jnp.eye(T)[None, :, None], (B, T, G, T))
    arrays, options = (q, k, names, index_q, index_k, index_w), dict(top_k=6, pool=3)
    outs = [
        indexed_attention(
            *arrays, **options, pool_tail=tail, segment_ids=jnp.asarray(ids), impl=impl
        )[0]
        for impl in ("reference", "chunked")
    ]
    np.testing.assert_allclose(*outs, atol=2e-6)
    products = np.einsum("btij,bsj->btis", index_q, index_k)
    scores = np.einsum("bti,btis->bts", index_w, np.maximum(products, 0))
    for b in range(B):
        for t in np.flatnonzero(ids[b]):
            first = t
            while first and ids[b, first - 1] == ids[b, t]:
                first -= 1
            ends = np.arange(first + 2, t + 1, 3)
            best = ends[np.argsort(-scores[b, t, ends], kind="stable")[:2]]
            wanted = {int(e) - back for e in best for back in range(3)}
            if tail:
                wanted |= set(range(first + 3 * len(ends), t + 1))
            assert set(np.flatnonzero(np.asarray(outs[1][b, t, 0]))) == wanted


def test_of_equal_scores_the_older_token_is_taken():
    q, k, w = jnp.ones((1, 1, 1, 2)), jnp.ones((1, 6, 2)), jnp.ones((1, 1, 1))
    seen = jnp.asarray([[[True, False, True, True, True, True]]])
    chosen = chosen_keys(q, k, w, seen, top_k=3)
    assert list(np.flatnonzero(chosen)) == [0, 2, 3]
    in_a_ring = chosen_keys(q, k, w, seen, top_k=3, oldest=jnp.int32(4))
    assert list(np.flatnonzero(in_a_ring)) == [0, 4, 5]


def test_the_indexer_learns_from_its_cross_entropy_alone():
    _, arrays = drawn(2)

    def outputs(*arrays):
        out, cross = indexed_attention(*arrays, top_k=7)
        return jnp.sum(out**2), jnp.sum(cross)

    every = tuple(range(6))
    of_out = jax.grad(lambda *a: outputs(*a)[0], every)(*arrays)
    of_cross = jax.grad(lambda *a: outputs(*a)[1], every)(*arrays)
    assert all(np.any(x) for x in of_out[:3]) and not any(np.any(x) for x in of_out[3:])
    assert all(np.any(x) for x in of_cross[3:]) and not any(np.any(x) for x in of_cross[:3])


def indexed_subject(pool):
    """Indexed attention whose state holds all tokens so far."""
    names = ("q", "k", "v", "index_q", "index_k", "index_w")
    shapes = (H, K), (G, K), (G, V), (INDEX_HEADS, J), (J,), (INDEX_HEADS,)
    sizes = dict(zip(names, shapes))

    def apply(inputs, params, segment_ids, state, impl):
        arrays, options = (inputs[n] for n in names), dict(top_k=6, pool=pool, impl=impl)
        out, cross = indexed_attention(
            *arrays, segment_ids=segment_ids, initial_state=state, **options
        )
        new = IndexedState(inputs["k"], inputs["v"], inputs["index_k"], segment_ids)
        if state is not None:
            new = jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=1), state, new)
        return dict(out=out) | (dict(cross=cross) if pool == 1 else {}), new

    def inputs(rng, batch, time, dtype):
        return {n: normal(rng, (batch, time, *size), dtype) for n, size in sizes.items()}

    def state(rng, batch, dtype):
        drawn = (normal(rng, (batch, 5, *sizes[n]), dtype) for n in ("k", "v", "index_k"))
        return IndexedState(*drawn, jnp.ones((batch, 5), jnp.int32))

    return Subject(f"indexed(pool={pool})", apply, inputs, state=state)


@pytest.mark.parametrize("impl", ["chunked", "reference"])
@pytest.mark.parametrize("pool", [1, 3])
@settings(max_examples=1, deadline=None, phases=[Phase.generate])
@given(seed=st.integers(0, 2**32 - 1))
def test_nan_and_infinity_reach_no_other_document(pool, impl, seed):
    """Law 8. With pools a state begins where a document does, so the first call has none."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        subject, ids = indexed_subject(pool), draw_segment_ids(rng, 2, 24, padding=0.2)
        check_contained(subject, rng, 2, 24, 11, ids, impl=impl, with_state=pool == 1)


def test_bad_arguments_are_refused():
    _, (q, k, v, index_q, index_k, index_w) = drawn(3, time=4)
    for arguments, sentence in (
        ((q, k, v, index_q[:, :3], index_k, index_w), r"index_q must have shape \(B, T, I, J\)"),
        ((q, k, v, index_q, index_k[..., :2], index_w), "index_k must have shape"),
        ((q, k, v, index_q, index_k, index_w[..., :1]), "index_w must have shape"),
        ((q, k[:, :, :1], v, index_q, index_k, index_w), "k and v must have shapes"),
        ((q[:, :, :3], k, v, index_q, index_k, index_w), "multiple of key/value heads"),
    ):
        with pytest.raises(ValueError, match=sentence):
            indexed_attention(*arguments, top_k=2)
    good = q, k, v, index_q, index_k, index_w
    with pytest.raises(ValueError, match="top_k must be an int >= 1, got 0"):
        indexed_attention(*good, top_k=0)
    with pytest.raises(ValueError, match="pool must divide top_k 4, got 3"):
        indexed_attention(*good, top_k=4, pool=3)
    state = IndexedState(k, v, index_k[..., :1], jnp.ones((B, 4), jnp.int32))
    with pytest.raises(ValueError, match="initial_state"):
        indexed_attention(*good, top_k=2, initial_state=state)


def test_a_score_of_nan_is_chosen():
    """Else a token that is decoded alone would not see the NaN of its own document."""
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.normal(size=(1, 3, 9)), jnp.float32).at[:, :, 4].set(jnp.nan)
    visible = jnp.ones((1, 3, 9), bool).at[0, 2, 4].set(False)
    chosen = largest(scores, visible, 3)
    np.testing.assert_array_equal(chosen[0, :, 4], [True, True, False])
    np.testing.assert_array_equal(jnp.sum(chosen, axis=-1), [[3, 3, 3]])
