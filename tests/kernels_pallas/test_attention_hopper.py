"""The laws for the Hopper attention kernels, interpreted with a race detector: blocks of 128 queries
against tiles of 32 keys, so that slots are reused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreted import errors
from jax.experimental.pallas import mosaic_gpu as plgpu
from subjects.attention import attention_subject

from kernels_pallas import attention as attn
from kernels_pallas import dispatch, testing
from kernels_pallas import mosaic_gpu as mg
from kernels_pallas.attention import hopper, hopper_gates
from kernels_pallas.testing import draw_segment_ids

BF16 = jnp.bfloat16
SUBJECTS = {
    "window, grouped heads": dict(window=40, heads=2, kv_heads=1),
    "window, all options": dict(window=50, heads=3, kv_heads=1, sinks=True, soft_cap=5.0),
    "window of one": dict(window=1, heads=1, kv_heads=1, sinks=True),
    "full": dict(window=None, heads=1, kv_heads=1),
    "full, all options": dict(window=None, heads=2, kv_heads=2, sinks=True, soft_cap=5.0),
    "sizes": dict(window=60, heads=1, kv_heads=1, key_size=64, value_size=96),
    "forgetful window": dict(window=100, heads=2, kv_heads=1, decay=0.3),
    "forgetful": dict(window=None, heads=1, kv_heads=1, decay=0.05),
    "forgetful, all options": dict(
        window=90, heads=3, kv_heads=1, sinks=True, soft_cap=5.0, decay=0.1
    ),
    "forgetful, groups of 8": dict(window=70, heads=8, kv_heads=1, decay=0.1),
}


def mostly_slow(*kinds):
    """The first kind by default, the others with the slow tests: each takes seconds to interpret."""
    rest = (pytest.param(kind, marks=pytest.mark.slow) for kind in kinds[1:])
    return pytest.mark.parametrize("kind", [kinds[0], *rest])


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    tiles = hopper.Tiles((32, 2), (32, 2), (32, 2))
    monkeypatch.setattr(hopper, "TILES", dict.fromkeys(hopper.TILES, tiles))
    with dispatch.kernels_for("gpu", plgpu.InterpretGPUParams(detect_races=True)):
        yield


def rng(seed=0):
    return np.random.default_rng(seed)


def check_as_near_as_chunked(subject, seed, time, with_state, batch=1, ids=None):
    """Law 1 in bfloat16: the error of every output and gradient against the float64 reference is at most
    1.5 times that of the chunked form, and there is no race."""
    ids = draw_segment_ids(rng(seed), batch, time) if ids is None else ids
    impls = "pallas", "chunked"
    want, found = errors(subject, rng(seed), batch, time, ids, with_state, impls, BF16)
    assert not mg.races_found()
    flat, _ = jax.tree_util.tree_flatten_with_path(want)
    for (path, true), ours, theirs in zip(flat, *map(jax.tree.leaves, found), strict=True):
        got, allowed = testing.error(ours, true), testing.error(theirs, true)
        assert got <= 1.5 * allowed + 1e-6, (jax.tree_util.keystr(path), got, allowed)


@mostly_slow(*SUBJECTS)
def test_kernel_is_the_reference(kind):
    check_as_near_as_chunked(attention_subject(**SUBJECTS[kind]), 0, 150, with_state=False)


@pytest.mark.slow
@pytest.mark.parametrize("time", [1, 63, 128, 200])
@pytest.mark.parametrize("kind", ["window, all options", "full", "forgetful window"])
def test_kernel_is_the_reference_at_any_length(kind, time):
    check_as_near_as_chunked(attention_subject(**SUBJECTS[kind]), time, time, True, batch=2)


@mostly_slow("window, grouped heads", "full, all options")
def test_a_state_and_its_gradient(kind):
    ids = jnp.ones((1, 90), jnp.int32)
    check_as_near_as_chunked(attention_subject(**SUBJECTS[kind], slots=37), 3, 90, True, ids=ids)


@mostly_slow("forgetful", "forgetful window", "forgetful, all options")
def test_gates_of_tiles_with_and_without_a_mask(kind):
    """One document, of which the first tile is seen whole by all queries of a block."""
    time, slots = 140, 40
    subject = attention_subject(**SUBJECTS[kind] | dict(window=None), slots=slots)
    for table in tile_ranges(time, None, slots=slots)[:2]:
        unmasked, masked = np.asarray(table)[:, 2:].sum(axis=0)
        assert unmasked and masked
    check_as_near_as_chunked(subject, 4, time, True, ids=jnp.ones((1, time), jnp.int32))


@pytest.mark.slow
def test_gates_of_unmasked_tiles_between_masked_ones():
    """A window that begins within a tile, so that a block of queries sees two tiles with
    a mask, then two without one, then four with one; a block of keys sees four, two and five."""
    time, window = 330, 200
    by_queries, by_keys, _ = tile_ranges(time, window)
    assert [0, 2, 2, 6] in np.asarray(by_queries).tolist()
    assert [0, 4, 2, 9] in np.asarray(by_keys).tolist()
    subject = attention_subject(window=window, heads=1, kv_heads=1, decay=0.05)
    check_as_near_as_chunked(subject, 6, time, False, ids=jnp.ones((1, time), jnp.int32))


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 14])
def test_gates_of_a_document_cost_the_next_one_no_digits(window):
    """A document of gates e^-5000 ends within a tile; the log-sum-exp is float32."""
    q, k, v = (testing.normal(rng(), (1, 40, 2, 4), BF16) for _ in range(3))
    ids = 1 + (jnp.arange(40) > 20).astype(jnp.int32)[None]
    gates = -0.1 * rng().exponential(size=(1, 40, 2)).astype(np.float32)
    gates[:, :21] = -5000
    options = dict(segment_ids=ids, window=window, log_forget_BTH=jnp.asarray(gates))
    found = [
        attn.attention(q, k, v, impl=impl, **options)[1][:, 21:] for impl in ("pallas", "reference")
    ]
    testing.assert_close("next", *found, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["window, grouped heads", "full", "forgetful window"])
def test_packed_is_separate(kind):
    subject = attention_subject(**SUBJECTS[kind])
    testing.check_packed(subject, rng(), [1, 97, 40], [0, 3, 0], BF16, 1e-2, impl="pallas")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["window, grouped heads", "forgetful window"])
def test_split_is_whole(kind):
    subject = attention_subject(**SUBJECTS[kind])
    ids = draw_segment_ids(rng(), 1, 80, padding=0)
    testing.check_split(
        subject, rng(), 1, 80, [43], ids, BF16, 1e-2, impl="pallas", with_state=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["window, grouped heads", "full", "forgetful window"])
def test_causal(kind):
    subject, ids = attention_subject(**SUBJECTS[kind]), draw_segment_ids(rng(1), 1, 140)
    testing.check_causal(subject, rng(), 1, 140, 71, ids, BF16, impl="pallas")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["window, all options", "forgetful, all options"])
def test_finite(kind):
    subject = attention_subject(**SUBJECTS[kind])
    ids = draw_segment_ids(rng(), 1, 63)
    testing.check_finite(subject, rng(), 1, 63, BF16, impl="pallas", segment_ids=ids)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["window, grouped heads", "forgetful window"])
def test_deterministic(kind):
    subject = attention_subject(**SUBJECTS[kind])
    testing.check_deterministic(subject, rng(), 1, 140, BF16, impl="pallas")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["forgetful window", "window, grouped heads", "full, all options"])
def test_nan_and_infinity_reach_no_other_document(kind):
    """Law 8; the second call has a state, which carries what was planted in the first."""
    subject, ids = attention_subject(**SUBJECTS[kind]), draw_segment_ids(rng(2), 1, 40)
    testing.check_contained(subject, rng(), 1, 40, 23, ids, BF16, 1e-6, impl="pallas")


@pytest.mark.slow
def test_one_program_serves_all_windows():
    q, k, v = (jnp.asarray(rng(i).standard_normal((1, 140, 1, 8)), BF16) for i in range(3))
    run = jax.jit(lambda window: attn.attention(q, k, v, window=window, impl="pallas")[0])
    for window in (1, 33, 1000):
        want = attn.attention(q, k, v, window=window, impl="chunked")[0]
        testing.assert_close(f"window {window}", run(jnp.int32(window)), want, 1e-2)


def gates_not_added(self, logits, keys, masked):
    return logits


def sums_of_keys_not_differentiated(self, drow, dcolumn, original=hopper._Layout.from_gates):
    return original(self, drow, jnp.zeros_like(dcolumn))


@pytest.mark.slow
@pytest.mark.parametrize(
    "where, name, replacement",
    [
        (hopper_gates.OwnQueries, "add", gates_not_added),
        (hopper._Layout, "from_gates", sums_of_keys_not_differentiated),
    ],
)
def test_planted_faults_of_forget_gates_are_caught(where, name, replacement, monkeypatch):
    subject = attention_subject(window=40, heads=1, kv_heads=1, decay=0.3)
    check_as_near_as_chunked(subject, 0, 60, with_state=False)
    monkeypatch.setattr(where, name, replacement)
    with pytest.raises(AssertionError):
        check_as_near_as_chunked(subject, 0, 60, with_state=False)


def tile_ranges(time, window, ids=None, slots=0, tile=32):
    """The `TileRanges` of query blocks and of key blocks, as arrays of their fields."""
    ids = jnp.ones((1, time + slots), jnp.int32) if ids is None else ids
    start = hopper.intervals.starts(ids, slots, window)
    q, k = jnp.zeros((1, time, 1, 64), BF16), jnp.zeros((1, time + slots, 1, 64), BF16)
    layout = hopper._Layout(q, k, k, None, start, hopper._Static(1.0, None, False))
    plan = layout.plan((tile, 2))
    seen = np.asarray(layout.start_BT)[0]
    return layout.key_tiles(plan)[0], layout.query_tiles(plan)[0], seen


@pytest.mark.parametrize("window,slots", [(1, 0), (40, 0), (300, 37), (None, 0), (None, 500)])
def test_visited_tiles_have_pairs_and_unmasked_ones_are_full(window, slots):
    """Checked with the mask itself: every tile with a visible pair is visited, and all pairs of an
    unmasked tile are visible; both kernels see the same pairs."""
    time, tile, block = 700, 32, 128
    ids = draw_segment_ids(rng(slots), 1, time + slots)
    by_queries, by_keys, start = tile_ranges(time, window, ids, slots, tile)
    own = np.arange(len(start)) + slots
    tokens = block * len(by_keys)
    mask = (np.arange(tokens) >= start[:, None]) & (np.arange(tokens) <= own[:, None])
    for pairs, table in ((mask, by_queries), (mask.T, by_keys)):
        for number, (first, before, unmasked, masked) in enumerate(np.asarray(table)):
            rows = pairs[number * block : (number + 1) * block]
            tiles = rows.reshape(block, -1, tile)
            seen, full = tiles.any(axis=(0, 2)), tiles.all(axis=(0, 2))
            visited = np.zeros_like(seen)
            visited[first : first + unmasked + masked] = True
            assert not (seen & ~visited).any()
            assert full[first + before : first + before + unmasked].all()
            if not (ids == 0).any():
                assert visited.sum() <= seen.sum() + 1


def test_work_is_proportional_to_the_window_and_the_documents():
    time = 128 * 64
    for window, most in ((128, 8), (512, 20)):
        by_queries, by_keys, _ = tile_ranges(time, window)
        assert np.asarray(by_queries)[:, 2:].sum(axis=1).max() <= most
        assert np.asarray(by_keys)[:, 2:].sum(axis=1).max() <= most
    documents = jnp.arange(time)[None] // 256 + 1
    by_queries, by_keys, _ = tile_ranges(time, None, documents)
    assert np.asarray(by_queries)[:, 2:].sum(axis=1).max() <= 8
    assert np.asarray(by_keys)[:, 2:].sum(axis=1).max() <= 8


def test_only_a_call_by_name_takes_the_kernel():
    shape = jnp.zeros((1, 16, 2, 8), BF16)

    def text(impl, x=shape):
        return str(jax.make_jaxpr(lambda x: attn.attention(x, x, x, window=4, impl=impl))(x))

    assert "attention_forward" in text("pallas")
    assert "attention_forward" not in text("auto")
    with pytest.raises(ValueError, match="hopper.*lacks dtype=float32"):
        text("pallas", shape.astype(jnp.float32))
    with pytest.raises(ValueError, match="hopper.*lacks key_size=160"):
        text("pallas", jnp.zeros((1, 16, 2, 160), BF16))
