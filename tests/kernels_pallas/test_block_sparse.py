"""Block-sparse attention beside the laws: loops over tokens, special cases, ties, memory, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects.block_sparse import block_sparse_subject

from kernels_pallas import testing
from kernels_pallas.attention import attention
from kernels_pallas.block_sparse import (
    BlockSparseState,
    block_sparse_attention,
    chunked,
    decode_block_sparse_attention,
    update_means,
)
from kernels_pallas.testing import normal

FORMS = ("reference", "chunked")
attend, attend_full = testing.compiled(block_sparse_attention), testing.compiled(attention)
new_means = testing.compiled(update_means)


def draw(rng, time, heads=4, kv_heads=2, size=5, batch=2):
    q = normal(rng, (batch, time, heads, size), jnp.float64)
    return q, *(normal(rng, (batch, time, kv_heads, size), jnp.float64) for _ in range(2))


def in_loops(q, k, v, ids, block, top_k):
    """MoBA in numpy, with loops over documents, queries and heads."""
    q, k, v, ids = (np.asarray(x) for x in (q, k, v, ids))
    out = np.zeros((*q.shape[:3], v.shape[-1]))
    for b, row in enumerate(ids):
        starts = [0, *(np.flatnonzero(np.diff(row)) + 1), len(row)]
        for begin, end in zip(starts, starts[1:]):
            if row[begin] == 0:
                continue
            for t in range(begin, end):
                own = begin + (t - begin) // block * block
                past = [np.arange(s, s + block) for s in range(begin, own, block)]
                for h in range(q.shape[2]):
                    g = h // (q.shape[2] // k.shape[2])
                    score = [q[b, t, h] @ k[b, keys, g].mean(0) for keys in past]
                    best = sorted(range(len(past)), key=lambda n: (-score[n], n))[: top_k - 1]
                    seen = np.concatenate([*(past[n] for n in best), np.arange(own, t + 1)])
                    seen = seen.astype(int)
                    logits = k[b, seen, g] @ q[b, t, h] / np.sqrt(q.shape[-1])
                    weights = np.exp(logits - logits.max())
                    out[b, t, h] = weights / weights.sum() @ v[b, seen, g]
    return out


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block, top_k", [(1, 3), (4, 2), (5, 3)])
def test_equals_loops_over_tokens(x64, form, block, top_k):
    rng = np.random.default_rng(block)
    q, k, v = draw(rng, 33)
    ids = testing.draw_segment_ids(rng, 2, 33, documents=3)
    got, _ = attend(q, k, v, block=block, top_k=top_k, segment_ids=ids, impl=form)
    np.testing.assert_allclose(got, in_loops(q, k, v, ids, block, top_k), atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_ids_of_any_size_are_ids(x64, form):
    """Neighbouring ids 2^31 apart are two documents, and the lowest integer is not padding."""
    q, k, v = draw(np.random.default_rng(6), 24)
    ids = jnp.repeat(jnp.asarray([[1, 1 - 2**31, -(2**31), 2**31 - 1]], jnp.int32), 6, axis=1)
    ids = jnp.tile(ids, (2, 1))
    got, _ = attend(q, k, v, block=4, top_k=2, segment_ids=ids, impl=form)
    np.testing.assert_allclose(got, in_loops(q, k, v, ids, 4, 2), atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_all_blocks_are_full_attention(x64, form):
    """Outputs, log-sum-exps and gradients."""
    rng = np.random.default_rng(0)
    arrays, ids = draw(rng, 50), testing.draw_segment_ids(rng, 2, 50)

    def sparse(q, k, v):
        return attend(q, k, v, block=7, top_k=8, segment_ids=ids, impl=form)

    def full(q, k, v):
        return attend_full(q, k, v, segment_ids=ids, impl="reference")

    results = []
    for function in (sparse, full):
        (out, lse), vjp = jax.vjp(function, *arrays)
        lse = jnp.where((ids == 0)[..., None], 0, lse)
        results.append((out, lse, vjp((jnp.cos(out), jnp.sin(lse)))))
    testing.assert_close("top_k = all blocks", *results, 1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_one_block_is_attention_within_blocks(x64, form):
    rng = np.random.default_rng(1)
    q, k, v = draw(rng, 20)
    blocks = jnp.tile(1 + jnp.arange(20, dtype=jnp.int32)[None] // 6, (2, 1))
    got = attend(q, k, v, block=6, top_k=1, impl=form)
    want = attend_full(q, k, v, segment_ids=blocks, impl="reference")
    testing.assert_close("top_k = 1", got, want, 1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_ties_select_the_earlier_block(form):
    """With equal keys all scores are ties; values show which blocks were selected."""
    q, k = jnp.ones((1, 12, 2, 4)), jnp.ones((1, 12, 1, 4))
    v = jnp.arange(12.0).reshape(1, 12, 1, 1)
    out, _ = attend(q, k, v, block=2, top_k=3, impl=form)
    for t in range(12):
        own = t // 2 * 2
        want = np.mean([*range(min(own, 4)), *range(own, t + 1)])
        np.testing.assert_allclose(out[0, t, :, 0], want, rtol=1e-6)


@pytest.mark.parametrize("tile, step", [(8, 1), (16, 10**6), (128, 300)])
def test_tiles_are_reference(x64, monkeypatch, tile, step):
    """Other tile sizes, one or many tiles per step, and scores in several pieces."""
    monkeypatch.setattr(chunked, "TILE", tile)
    monkeypatch.setattr(chunked, "STEP", step)
    monkeypatch.setattr(chunked, "RANKED_QUERIES", 50)
    rng = np.random.default_rng(2)
    subject = block_sparse_subject(block=8, top_k=4, slots=30, position=3)
    ids = testing.draw_segment_ids(rng, 2, 130)
    testing.check_forms(subject, rng, 2, 130, segment_ids=ids)


def test_vmap(x64):
    rng = np.random.default_rng(3)
    testing.check_vmap(block_sparse_subject(block=4, top_k=3), rng, 2, 1, 40)


def test_positions_of_the_state_define_the_blocks(x64):
    """A state of a document's last tokens is enough if it has complete blocks."""
    rng = np.random.default_rng(4)
    q, k, v = draw(rng, 30)
    whole, _ = attend(q, k, v, block=6, top_k=99, impl="reference")
    positions = jnp.tile(jnp.arange(20)[None], (2, 1))
    state = BlockSparseState(k[:, :20], v[:, :20], jnp.ones((2, 20), jnp.int32), positions)
    last = [x[:, 20:] for x in (q, k, v)]
    for form in FORMS:
        out, _ = attend(*last, block=6, top_k=99, initial_state=state, impl=form)
        testing.assert_close("state", out, whole[:, 20:], 1e-10)


def test_decode_is_the_last_query_of_a_ring_that_has_wrapped(x64):
    """With means computed at once or token by token; the token of the other row is padding."""
    rng = np.random.default_rng(5)
    time, slots, block, first = 23, 25, 4, 12
    q, k, v = draw(rng, time)
    want, _ = attend(q, k, v, block=block, top_k=3, impl="reference")
    at = (first + np.arange(time)) % slots
    k_ring, v_ring = (jnp.zeros((2, slots, *x.shape[2:])).at[:, at].set(x) for x in (k, v))
    first_B, zero = jnp.full(2, first, jnp.int32), jnp.zeros((2, 7, *k.shape[2:]))
    known = jnp.zeros(2, jnp.int32)
    means = new_means(zero, k_ring, first_B, known, known + time, time=time, block=block)
    stepwise = zero
    for n in range(time):
        stepwise = new_means(
            stepwise, k_ring, first_B, known + n, known + n + 1, time=1, block=block
        )
    testing.assert_close("means", stepwise, means, 1e-12)
    got = decode_block_sparse_attention(
        q[:, -1], k_ring, v_ring, means, first_B, jnp.array([time - 1, -1]), block=block, top_k=3
    )
    testing.assert_close("decode", got[0], want[0, -1], 1e-10)
    assert np.all(np.asarray(got[1]) == 0)


def test_memory_is_linear_in_time():
    """No T x T array: the gradient's temporary memory doubles with T."""

    def temporaries(time):
        shape = jax.ShapeDtypeStruct((1, time, 1, 16), jnp.float32)

        def loss(q, k, v):
            return attend(q, k, v, block=64, top_k=3, impl="chunked")[0].sum()

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporaries(4096), temporaries(8192)
    assert long < 2.6 * short, f"{short} bytes, then {long}"


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(block=0), "block must be an int >= 1, got 0"),
        (dict(top_k=0), "top_k must be an int >= 1, got 0"),
        (dict(k=(2, 5, 3, 8), v=(2, 5, 3, 8)), "multiple of key/value heads, got 4 and 3"),
        (dict(k=(2, 5, 2, 7)), "k must have shape"),
        (dict(v=(2, 4, 2, 8)), "v must agree with k"),
        (dict(segment_ids=jnp.ones((2, 4), jnp.int32)), r"segment_ids must have shape"),
        (dict(scale=jnp.ones(())), "scale must be None or a Python number"),
        (dict(impl="fast"), "impl must be one of auto, reference, chunked, pallas"),
        (dict(impl="pallas"), "has no kernel"),
        (dict(initial_state="short"), "initial_state.positions_BS must have shape"),
    ],
)
def test_errors(change, message):
    shapes = dict(q=(2, 5, 4, 8), k=(2, 5, 2, 8), v=(2, 5, 2, 8))
    arrays = [jnp.zeros(change.pop(name, shape)) for name, shape in shapes.items()]
    if change.get("initial_state") == "short":
        past, ids = jnp.zeros((2, 3, 2, 8)), jnp.zeros((2, 3), jnp.int32)
        change = dict(initial_state=BlockSparseState(past, past, ids, ids[:, :2]))
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(*arrays, **(dict(block=2, top_k=2) | change))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(q=(2, 8)), r"q must have shape \(B, H, K\), got \(2, 8\)"),
        (dict(k=(3, 5, 2, 8)), "k must have shape"),
        (dict(k=(2, 5)), "k must have shape"),
        (dict(means=(2, 3, 1, 8)), "means_BNGK must have shape"),
        (dict(first=(2, 1)), r"first_B must have shape \(B\) = \(2,\), got \(2, 1\)"),
        (dict(position=()), "position_B must have shape"),
    ],
)
def test_errors_of_decoding(change, message):
    shapes = dict(q=(2, 4, 8), k=(2, 5, 2, 8), v=(2, 5, 2, 8), means=(2, 3, 2, 8))
    arrays = [jnp.zeros(change.get(name, shape)) for name, shape in shapes.items()]
    arrays += [jnp.zeros(change.get(name, (2,)), jnp.int32) for name in ("first", "position")]
    with pytest.raises(ValueError, match=message):
        decode_block_sparse_attention(*arrays, block=2, top_k=2)
