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
    "forgetful": dict(window=None, heads=3, kv_heads=1, sinks=True, decay=0.05),
    "forgetful window": dict(window=50, heads=2, kv_heads=2, decay=0.3),
}
by_kind = pytest.mark.parametrize("kind", SUBJECTS)
full_and_forgetful = pytest.mark.parametrize(
    "kind", ["full", pytest.param("forgetful", marks=pytest.mark.slow)]
)


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


@pytest.mark.parametrize(
    "time, forget",
    [
        (9, False),
        (9, True),
        (40, True),
        *(pytest.param(t, f, marks=pytest.mark.slow) for t, f in [(5, False), (40, False)]),
    ],
)
def test_few_queries_after_many_keys(time, forget):
    """One or two spans of queries, the first of them padded, and four or five of keys: outputs and gradients."""
    draw, slots = rng(1), 90
    q, k, v = (testing.normal(draw, (2, slots + time, 2, 4), jnp.float32) for _ in range(3))
    gates = gates_of(draw, (2, slots + time, 2), 0.1) if forget else None
    cotangents = testing.normal(draw, (2, time, 2, 4), jnp.float32), jnp.ones((2, time, 2))
    ids = np.repeat([[1], [3]], slots + time, axis=1)
    ids[0, :40], ids[1, :84] = (
        2,
        4,
    )  # with 40 queries, token 84 is where the queries of a block are padded
    ids = jnp.asarray(ids)

    @functools.partial(jax.jit, static_argnums=0)
    def run(impl, *inputs):
        def op(*inputs):
            tokens = *(x[:, slots:] for x in inputs[:3]), *(x[:, slots:] for x in inputs[3:])
            old = (x[:, :slots] for x in inputs[1:])
            state = attn.AttentionState(next(old), next(old), ids[:, :slots], *old)
            given = dict(segment_ids=ids[:, slots:], initial_state=state, impl=impl)
            log_forget = tokens[3] if forget else None
            return attn.attention(*tokens[:3], log_forget_BTH=log_forget, **given)

        outputs, pull = jax.vjp(op, *inputs)
        return outputs, pull(cotangents)

    inputs = (q, k, v, gates) if forget else (q, k, v)
    testing.assert_close("few", run("pallas", *inputs), run("reference", *inputs), 1e-5)


def gates_of(draw, shape, decay):
    return jnp.asarray(-decay * draw.exponential(size=shape), jnp.float32)


@pytest.mark.parametrize("decay", [0.02, 2.0])
def test_forget_gates_of_documents_that_begin_within_a_span(decay):
    """The spans of 113 tokens begin at 0, 17, 49 and 81; documents begin within a far span, at the first
    token of one, and after padding within the last one. With the stronger gates a query's sum since the last
    key of a far span is up to a hundred."""
    lengths = [(40, 73, 0), (49, 64, 0), (90, 4, 19)]
    rows = [
        np.repeat(ids, tokens) for ids, tokens in zip([(1, 2, 3), (1, 2, 3), (1, 0, 3)], lengths)
    ]
    subject = attention_subject(**SUBJECTS["forgetful"] | dict(decay=decay))
    check_against_float64(subject, rng(), 3, 113, jnp.asarray(rows, jnp.int32))


def test_gates_of_a_document_cost_the_next_one_no_digits():
    """A document of gates e^-5000 ends within a block of the last of three spans."""
    q, k, v = (testing.normal(rng(), (1, 80, 2, 4), jnp.float32) for _ in range(3))
    ids = 1 + (jnp.arange(80) > 56).astype(jnp.int32)[None]
    gates = gates_of(rng(), (1, 80, 2), 0.1).at[:, :57].set(-5000)
    found = [
        jax.jit(functools.partial(attn.attention, impl=impl))(
            q, k, v, segment_ids=ids, log_forget_BTH=gates
        )
        for impl in ("pallas", "reference")
    ]
    testing.assert_close("next", *([x[:, 57:] for x in xs] for xs in found), 1e-6)


@pytest.mark.parametrize("gate", [-5.0, -40.0])
def test_keys_of_a_far_span_that_outweigh_strong_gates(gate):
    """All gates are 1 but that of token 60; the logit of token 3, in the first of four spans, makes up for it."""
    draw, shape = rng(2), (1, 113, 2, 4)
    q, k, v = (testing.normal(draw, shape, jnp.float32) for _ in range(3))
    q, k = q.at[..., 0].set(3.0), k.at[:, 3, :, 0].set((2 - gate) / 1.5)
    gates = jnp.zeros((1, 113, 2), jnp.float32).at[:, 60].set(gate)

    @functools.partial(jax.jit, static_argnums=0)
    def run(impl):
        def op(q, k, v, gates):
            return attn.attention(q, k, v, log_forget_BTH=gates, impl=impl)

        outputs, pull = jax.vjp(op, q, k, v, gates)
        return outputs, pull(jax.tree.map(jnp.ones_like, outputs))

    testing.assert_close("outweigh", run("pallas"), run("reference"), 1e-5)


@pytest.mark.parametrize("decay", [None, 0.05])
def test_bfloat16_is_as_exact_as_the_chunked_form(decay):
    """Parts are merged and summed in float32."""
    subject = attention_subject(
        window=None, heads=2, kv_heads=1, key_size=16, value_size=16, decay=decay
    )
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


@pytest.mark.slow
def test_finite():
    """Strong gates, gates of 0, large logits."""
    subject, ids = attention_subject(**SUBJECTS["forgetful"]), draw_segment_ids(rng(), 1, 80)
    testing.check_finite(subject, rng(), 1, 80, impl="pallas", segment_ids=ids)


@full_and_forgetful
def test_packed_is_separate(kind):
    subject = attention_subject(**SUBJECTS[kind])
    testing.check_packed(subject, rng(), [50, 37, 1], [0, 3, 0], jnp.float32, 1e-5, impl="pallas")


@full_and_forgetful
def test_causal(kind):
    subject, ids = attention_subject(**SUBJECTS[kind]), draw_segment_ids(rng(1), 2, 80)
    testing.check_causal(subject, rng(), 2, 80, 39, ids, impl="pallas")


def test_the_loop_over_distances_ends_with_the_window():
    sizes, options = (4, 4, jnp.float32), (1.0, None, jax.lax.Precision.HIGHEST)
    found = {w: tpu_spans._spans(300, 300, w, sizes, options) for w in (40, 65, 66, None)}
    assert {w: s.distances for w, s in found.items()} == {40: 2, 65: 2, 66: 3, None: 9}
    assert found[None].length == 32 and found[None].keys == found[None].queries == 10
    # The first of 9 queries sees 23 older keys of its own span.
    few = {w: tpu_spans._spans(9, 300, w, sizes, options).distances for w in (24, 25, 56, 57)}
    assert few == {24: 0, 25: 1, 56: 1, 57: 2}


def sums_of_queries_dropped(self, distance, start, original=tpu_spans._Rows.gates_at):
    found = original(self, distance, start)
    return found._replace(since_BTH=jnp.zeros_like(found.since_BTH))


def sums_of_another_span(self, distance, original=tpu_spans._Rows._sums_at):
    return original(self, distance * 0)


def gradients_of_far_sums_dropped(self, sums, x_NL, distance, original=tpu_spans._Rows.add_at):
    kept = 1 if x_NL.ndim == 4 else jnp.where(distance == 0, 1, 0)  # the sums have no channels
    return original(self, sums, x_NL * kept, distance)


@pytest.mark.parametrize(
    "name, replacement",
    [
        ("gates_at", sums_of_queries_dropped),
        *(
            pytest.param(*fault, marks=pytest.mark.slow)
            for fault in (
                ("_sums_at", sums_of_another_span),
                ("add_at", gradients_of_far_sums_dropped),
            )
        ),
    ],
)
def test_planted_faults_of_forget_gates_are_caught(name, replacement, monkeypatch):
    monkeypatch.setattr(tpu_spans._Rows, name, replacement)
    subject = attention_subject(window=None, heads=1, kv_heads=1, decay=0.1)
    with pytest.raises(AssertionError, match="off by"):
        check_against_float64(subject, rng(), 1, 80, jnp.repeat(jnp.array([[1, 2]]), 40, axis=1))


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
