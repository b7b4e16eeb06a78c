"""The laws for TPU attention to more keys than VMEM holds: interpreted, with VMEM for 32 keys."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpreted import check_against_float64, errors, kernels, kernels_read_again
from subjects.attention import attention_subject

from kernels_pallas import attention as attn
from kernels_pallas import testing
from kernels_pallas.attention import tpu, tpu_spans
from kernels_pallas.testing import draw_segment_ids

SUBJECTS = {
    "full": dict(window=None, sinks=True, soft_cap=5.0),
    "grouped": dict(window=None, heads=3, kv_heads=1, value_size=6),
    "window": dict(window=50, heads=2, kv_heads=2, sinks=True),
}
by_kind = pytest.mark.parametrize("kind", SUBJECTS)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    sizes = tpu.BlockSizes(slice=8, tile=8, block=16, short=32, size=4)
    monkeypatch.setattr(tpu, "BLOCK_SIZES", sizes)

    def vmem_mib(time, slots, window, *sizes):
        return 0 if time + slots <= 32 else tpu.VMEM_MIB + 1

    monkeypatch.setattr(tpu, "vmem_mib", vmem_mib)
    with kernels():
        yield


def rng(seed=0):
    return np.random.default_rng(seed)


@by_kind
def test_spans_are_the_reference(kind):
    """113 tokens are four spans of 32, the first of 17."""
    ids = draw_segment_ids(rng(), 2, 113)
    check_against_float64(attention_subject(**SUBJECTS[kind]), rng(), 2, 113, ids)


@pytest.mark.slow
@by_kind
@pytest.mark.parametrize("time", [33, 64, 127])
def test_spans_are_the_reference_at_any_length_with_older_keys(kind, time):
    """One document, so that all queries see all spans before them, and keys of a state."""
    subject, ids = attention_subject(**SUBJECTS[kind]), jnp.ones((2, time), jnp.int32)
    check_against_float64(subject, rng(time), 2, time, ids, with_state=True)
    check_against_float64(subject, rng(time), 2, time, ids)


@pytest.mark.parametrize("time", [9, *(pytest.param(t, marks=pytest.mark.slow) for t in (5, 40))])
def test_few_queries_after_many_keys(time):
    """One or two spans of queries, and four of keys: outputs and gradients."""
    draw, slots = rng(1), 90
    q, k, v = (testing.normal(draw, (2, slots + time, 2, 4), jnp.float32) for _ in range(3))
    cotangents = testing.normal(draw, (2, time, 2, 4), jnp.float32), jnp.ones((2, time, 2))
    ids = jnp.asarray(np.repeat([[1], [3]], slots + time, axis=1)).at[0, :40].set(2)

    @functools.partial(jax.jit, static_argnums=0)
    def run(impl, q, k, v):
        def op(q, k, v):
            state = attn.AttentionState(k[:, :slots], v[:, :slots], ids[:, :slots])
            given = dict(segment_ids=ids[:, slots:], initial_state=state, impl=impl)
            return attn.attention(q[:, slots:], k[:, slots:], v[:, slots:], **given)

        outputs, pull = jax.vjp(op, q, k, v)
        return outputs, pull(cotangents)

    testing.assert_close("few", run("pallas", q, k, v), run("reference", q, k, v), 1e-5)


def test_bfloat16_is_as_exact_as_the_chunked_form():
    """Parts are merged and summed in float32."""
    subject = attention_subject(window=None, heads=2, kv_heads=1, key_size=16, value_size=16)
    ids = draw_segment_ids(rng(), 2, 113, padding=0)
    forms = "pallas", "chunked"
    with kernels(precision="default"):
        want, found = errors(subject, rng(), 2, 113, ids, False, forms, jnp.bfloat16)
    ours, chunked = (
        [testing.error(x, y) for x, y in zip(*map(jax.tree.leaves, (got, want)))] for got in found
    )
    assert all(a <= 1.5 * b + 1e-6 for a, b in zip(ours, chunked)), (ours, chunked)


def test_a_key_that_weighs_nothing_gives_no_nan():
    """The only key of a span that a query sees has a logit below the least maximum."""
    q, k = jnp.full((1, 64, 1, 4), 1e10), jnp.zeros((1, 64, 1, 4)).at[:, 31].set(-1e12)
    ids = jnp.where(jnp.arange(64) < 31, 1, 2)[None]
    out, lse = attn.attention(q, k, jnp.ones_like(k), segment_ids=ids, impl="pallas")
    np.testing.assert_allclose(out[:, 32:], 1.0, 1e-6)  # 31 itself sees nothing else
    assert jnp.isfinite(lse[:, 32:]).all()


@by_kind
def test_nan_and_infinity_reach_no_other_document(kind):
    subject = attention_subject(**SUBJECTS[kind])
    ids = draw_segment_ids(rng(5), 2, 75, padding=0.2)
    testing.check_contained(subject, rng(5), 2, 75, 41, ids, jnp.float32, 1e-5, "pallas")


def test_packed_is_separate():
    subject = attention_subject(**SUBJECTS["full"])
    testing.check_packed(subject, rng(), [50, 37, 1], [0, 3, 0], jnp.float32, 1e-5, impl="pallas")


def test_causal():
    subject, ids = attention_subject(**SUBJECTS["full"]), draw_segment_ids(rng(1), 2, 80)
    testing.check_causal(subject, rng(), 2, 80, 39, ids, impl="pallas")


def test_the_loop_over_distances_ends_with_the_window():
    sizes, options = (4, 4, jnp.float32), (1.0, None, jax.lax.Precision.HIGHEST)
    found = {w: tpu_spans._spans(300, 300, w, sizes, options) for w in (40, 65, 66, None)}
    assert {w: s.distances for w, s in found.items()} == {40: 2, 65: 2, 66: 3, None: 9}
    assert found[None].length == 32 and found[None].keys == found[None].queries == 10
    # The first of 9 queries sees 23 older keys of its own span.
    few = {w: tpu_spans._spans(9, 300, w, sizes, options).distances for w in (24, 25, 56, 57)}
    assert few == {24: 0, 25: 1, 56: 1, 57: 2}


def test_saved_names_spare_the_forward_kernels_in_the_backward_pass():
    policy = jax.checkpoint_policies.save_only_these_names("attention_out", "attention_lse")
    x = jnp.ones((1, 64, 2, 4), jnp.float32)

    @functools.partial(jax.checkpoint, policy=policy)
    def loss(x):
        out, lse = attn.attention(x, x, x, impl="pallas")
        return jnp.sum(out) + jnp.sum(lse)

    read = kernels_read_again(loss, x)
    names = {name for name, is_read in read.items() if is_read}
    assert names == {"attention_backward", "attention_backward_older"}
