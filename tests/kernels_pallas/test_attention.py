"""The laws for attention, and its special features: grouped heads, window, lse, sinks, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params
from subjects.attention import attention_subject

from kernels_pallas import testing
from kernels_pallas.attention import (
    AttentionState,
    attention,
    chunked,
    decode_attention,
    forget,
)
from kernels_pallas.testing import normal

few = settings(max_examples=4, deadline=None)
seeds = st.integers(0, 2**32 - 1)
windows = st.sampled_from([None, 1, 2, 33, 128, 200, 5000])


@few
@given(
    seed=seeds,
    time=st.integers(1, 400),
    window=windows,
    heads=st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    sinks=st.booleans(),
    soft_cap=st.sampled_from([None, 3.0]),
    slots=st.sampled_from([0, 1, 150]),
)
def test_chunked_is_reference(seed, time, window, heads, sinks, soft_cap, slots):
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        subject = attention_subject(
            *heads, window=window, sinks=sinks, soft_cap=soft_cap, slots=slots
        )
        ids = testing.draw_segment_ids(rng, 2, time)
        testing.check_forms(subject, rng, 2, time, segment_ids=ids)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    seed=seeds,
    time=st.integers(1, 1200),
    window=windows,
    sinks=st.booleans(),
    soft_cap=st.sampled_from([None, 3.0]),
    slots=st.sampled_from([0, 1, 127, 300]),
)
def test_chunked_is_reference_widely(seed, time, window, sinks, soft_cap, slots):
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        subject = attention_subject(window=window, sinks=sinks, soft_cap=soft_cap, slots=slots)
        ids = testing.draw_segment_ids(rng, 2, time, documents=6)
        testing.check_forms(subject, rng, 2, time, segment_ids=ids)


@pytest.mark.parametrize("window", [None, 20, 100])
def test_scanned_stages_are_reference(x64, window, monkeypatch):
    """Stages with several blocks, as in long sequences, on a short one."""
    monkeypatch.setattr(chunked, "MAX_STAGES", 2)
    monkeypatch.setattr(chunked, "MAX_TOKENS", 64)
    monkeypatch.setattr(chunked, "block_length", lambda time, keys, window: 32)
    rng = np.random.default_rng(1)
    ids = testing.draw_segment_ids(rng, 2, 330)
    subject = attention_subject(window=window, sinks=True)
    testing.check_forms(subject, rng, 2, 330, segment_ids=ids)


@pytest.mark.parametrize("window", [None, 128])
def test_float32(window):
    rng = np.random.default_rng(2)
    ids = testing.draw_segment_ids(rng, 2, 300)
    subject = attention_subject(key_size=32, value_size=32, window=window)
    testing.check_forms(subject, rng, 2, 300, jnp.float32, 1e-5, segment_ids=ids)


def test_bfloat16_is_as_close_to_float64_as_the_dense_xla_form():
    """Law 1 in bf16: at most 1.5 times the error of jax.nn.dot_product_attention."""
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        shape = (1, 192, 2, 64)
        wide = [normal(rng, shape, jnp.bfloat16).astype(jnp.float64) for _ in range(4)]

        def gradients(form, dtype):
            @jax.jit
            def both(q, k, v, dout):
                out, vjp = jax.vjp(form, q, k, v)
                return out, *vjp(dout)

            return both(*(x.astype(dtype) for x in wide))

        def chunked_form(q, k, v):
            return attention(q, k, v, impl="chunked")[0]

        def dense(q, k, v):
            return jax.nn.dot_product_attention(q, k, v, is_causal=True)

        exact = gradients(lambda q, k, v: attention(q, k, v, impl="reference")[0], jnp.float64)

        def rms(xs):
            return [float(jnp.sqrt(jnp.mean(jnp.square(x - y)))) for x, y in zip(xs, exact)]

        ours, theirs = (
            rms(gradients(chunked_form, jnp.bfloat16)),
            rms(gradients(dense, jnp.bfloat16)),
        )
    for name, mine, other in zip(("out", "dq", "dk", "dv"), ours, theirs):
        assert mine <= 1.5 * other, f"{name}: rms error {mine:.2e} against {other:.2e}"


@pytest.mark.parametrize("window", [None, 40])
def test_packed_is_separate(x64, window):
    rng = np.random.default_rng(4)
    subject = attention_subject(window=window, sinks=True)
    cut = int(rng.integers(2, 120))
    testing.check_packed(subject, rng, [1, cut, 130, 1], gaps=[0, 3, 0, 5])


@pytest.mark.parametrize("window", [None, 9])
def test_split_is_whole(x64, window):
    rng = np.random.default_rng(5)
    subject = attention_subject(window=window, sinks=True)
    ids = testing.draw_segment_ids(rng, 2, 160)
    cuts = sorted({int(c) for c in rng.integers(1, 160, size=1)} | {75})
    testing.check_split(subject, rng, 2, 160, cuts, segment_ids=ids)
    testing.check_split(subject, rng, 2, 5, range(1, 5), segment_ids=ids[:, :5])


@pytest.mark.parametrize("time", [1, 63, 127, 1000])
def test_finite(time):
    rng = np.random.default_rng(7)
    ids = testing.draw_segment_ids(rng, 1, time)
    subject = attention_subject(window=128, key_size=60, sinks=True)
    testing.check_finite(subject, rng, 1, time, segment_ids=ids)


def test_vmap(x64):
    rng = np.random.default_rng(8)
    subject = attention_subject(window=20, sinks=True)
    testing.check_vmap(subject, rng, 2, 1, 140)


def test_padding_has_zero_out_and_finite_lse():
    rng = np.random.default_rng(9)
    q, k, v = (normal(rng, (1, 6, 2, 4), jnp.float32) for _ in range(3))
    ids = jnp.asarray([[1, 1, 0, 2, 0, 0]])
    for impl in ("reference", "chunked"):
        for sinks in (None, jnp.ones(2)):
            out, lse = attention(q, k, v, segment_ids=ids, sinks_H=sinks, impl=impl)
            assert np.all(np.asarray(out)[0, [2, 4, 5]] == 0)
            assert np.all(np.asarray(lse)[0, [2, 4, 5]] == np.float32(-1e30))


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_one_program_serves_all_windows(x64, impl):
    """A traced window gives the same results and gradients as the same int, also at boundaries."""
    rng = np.random.default_rng(2)
    q, k, v = (normal(rng, (2, 150, heads, 8), jnp.float64) for heads in (4, 2, 2))
    ids = testing.draw_segment_ids(rng, 2, 150)

    def summed(q, k, v, window):
        out, lse = attention(q, k, v, segment_ids=ids, window=window, impl=impl)
        return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.where(lse > -1e20, lse, 0))

    program = jax.jit(jax.value_and_grad(summed, argnums=(0, 1, 2)))
    for window in (1, 140, 999):
        got = program(q, k, v, jnp.int32(window))
        known = functools.partial(summed, window=window)
        want = jax.jit(jax.value_and_grad(known, argnums=(0, 1, 2)))(q, k, v)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), got, want)
    assert program._cache_size() == 1


def test_a_traced_window_keeps_no_state():
    q = jnp.ones((1, 4, 1, 8))
    with pytest.raises(ValueError, match="cannot be combined with a state"):
        attention(q, q, q, window=jnp.int32(2), return_state=True)
    with pytest.raises(ValueError, match="int32 scalar array"):
        attention(q, q, q, window=jnp.float32(2))


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_a_window_of_any_length(impl):
    """A window of at least the number of keys is full attention, also if it is no int32."""
    q = jax.random.normal(jax.random.key(0), (1, 6, 1, 4))
    want = attention(q, q, q, impl=impl)
    for window in (6, 2**31 + 1, 2**40):
        testing.assert_close("window", attention(q, q, q, window=window, impl=impl), want, 0)


def test_sums_of_gates_keep_the_digits_of_neighbours_in_a_long_document():
    """4,000 tokens on, a float32 sum of log-gates has a unit of 1/64; the difference of two has 1e-6."""
    gates = -50 - np.random.default_rng(12).exponential(size=(1, 4000, 1)).astype(np.float32)
    ids = jnp.ones((1, 4000), jnp.int32)
    sums = jax.jit(forget.cumulative)(jnp.asarray(gates), ids)
    high, low = (np.asarray(x)[0] for x in sums)
    steps = (high[1:] - high[:-1]) + (low[1:] - low[:-1])
    np.testing.assert_allclose(steps, gates[0, 1:], rtol=1e-6)


@pytest.mark.slow
def test_a_gate_of_0_starts_anew(x64):
    """Nothing before a gate of 0 is seen, as at the start of a document, from that token on."""
    rng = np.random.default_rng(13)
    q, k, v = (normal(rng, (1, 30, 2, 4), jnp.float64) for _ in range(3))
    gates = jnp.zeros((1, 30, 2)).at[:, 11].set(-jnp.inf)
    ids = 1 + (jnp.arange(30) >= 11).astype(jnp.int32)[None]
    for impl in ("reference", "chunked"):
        form = jax.jit(functools.partial(attention, impl=impl))
        got, want = form(q, k, v, log_forget_BTH=gates), form(q, k, v, segment_ids=ids)
        testing.assert_close(impl, got, want, 1e-10)


@pytest.mark.parametrize("window", [None, pytest.param(5, marks=pytest.mark.slow)])
def test_a_gate_of_several_heads_is_one_for_each(x64, window):
    """Of 12 query heads and 2 key/value heads, every three share a gate; state and gradients, too."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return normal(rng, shape, jnp.float64)

    q, k, v = draw(2, 9, 12, 4), draw(2, 9, 2, 4), draw(2, 9, 2, 3)
    log_forget, before = -jnp.exp(draw(2, 9, 4)), -jnp.exp(draw(2, 6, 4))
    keys, values = draw(2, 6, 2, 4), draw(2, 6, 2, 3)
    ids = jnp.asarray([[1] * 9, [1] * 4 + [2] * 5], jnp.int32)

    def outputs(impl, shared, q, k, v, log_forget, before):
        state = AttentionState(keys, values, jnp.ones((2, 6), jnp.int32), before)
        options = dict(heads_per_gate=3) if shared else {}
        if not shared:
            log_forget = jnp.repeat(log_forget, 3, axis=2)
            state = state._replace(log_forget_BSH=jnp.repeat(before, 3, axis=2))
        options |= dict(segment_ids=ids, window=window, initial_state=state, impl=impl)
        return attention(q, k, v, log_forget_BTH=log_forget, **options)

    cotangents = draw(2, 9, 12, 3), draw(2, 9, 12)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def with_gradients(impl, shared, *arrays):
        found, pull_back = jax.vjp(functools.partial(outputs, impl, shared), *arrays)
        return found, pull_back(cotangents)

    arrays = q, k, v, log_forget, before
    want = with_gradients("reference", False, *arrays)
    for impl in ("reference", "chunked"):
        testing.assert_close(impl, with_gradients(impl, True, *arrays), want, 1e-10)


def test_window_counts_the_query_itself():
    """With window W token t sees exactly W keys: all values equal the mean of the last W."""
    v = jnp.arange(10.0).reshape(1, 10, 1, 1)
    q = k = jnp.zeros((1, 10, 1, 4))
    for window in (1, 2, 5):
        out, lse = attention(q, k, v, window=window, impl="chunked")
        want = [np.mean(range(max(0, t - window + 1), t + 1)) for t in range(10)]
        np.testing.assert_allclose(out[0, :, 0, 0], want, atol=1e-6)
        np.testing.assert_allclose(np.exp(lse[0, :, 0]), np.minimum(window, np.arange(1, 11)), 1e-6)


def test_two_attentions_merge_by_lse(x64):
    """Attention to recent keys (a window) and to older keys, merged by lse, equals full attention,
    gradients included."""
    rng = np.random.default_rng(10)
    q, k, v, dout = (normal(rng, (1, 50, 2, 4), jnp.float64) for _ in range(4))

    def merged(q, k, v):
        near, near_lse = attention(q, k, v, window=8, impl="chunked")
        # The older keys are those of the sequence delayed by 8, with a window of 42.
        delayed = [jnp.pad(x, ((0, 0), (8, 0), (0, 0), (0, 0)))[:, :50] for x in (k, v)]
        ids = (jnp.arange(50) >= 8).astype(jnp.int32)[None]
        far, far_lse = attention(q, *delayed, segment_ids=ids, window=42, impl="chunked")
        weight = jax.nn.sigmoid(near_lse - far_lse)[..., None]
        return weight * near + (1 - weight) * far

    def full(q, k, v):
        return attention(q, k, v, impl="reference")[0]

    results = []
    for form in (merged, full):
        out, vjp = jax.vjp(jax.jit(form), q, k, v)
        results.append((out, vjp(dout)))
    testing.assert_close("merge", *results, 1e-10)


def test_decode_is_attention_with_slots_in_any_order(x64):
    rng = np.random.default_rng(11)
    batch, slots = 2, 20
    k, v = (normal(rng, (batch, slots, 2, 8), jnp.float64) for _ in range(2))
    q, sinks = normal(rng, (batch, 4, 8), jnp.float64), normal(rng, (4,), jnp.float64)
    valid = jnp.asarray(rng.random((batch, slots)) < 0.5).at[0].set(False).at[:, -1].set(True)
    order = jnp.asarray(rng.permutation(slots))
    got = decode_attention(
        q, k[:, order], v[:, order], valid[:, order], sinks_H=sinks, soft_cap=2.0
    )
    for row in range(batch):
        keep = np.flatnonzero(valid[row])
        q_row = jnp.broadcast_to(q[row, None, None], (1, len(keep), 4, 8))
        args = q_row, k[row, keep][None], v[row, keep][None]
        want = attention(*args, sinks_H=sinks, soft_cap=2.0, impl="reference")[0][0, -1]
        testing.assert_close("decode", got[row], want, 1e-10)
    nothing = decode_attention(q, k, v, jnp.zeros_like(valid), sinks_H=sinks)
    assert np.all(np.asarray(nothing) == 0)


def test_memory_is_linear_in_time(monkeypatch):
    """No T x T array: the gradient's temporary memory doubles with T."""

    def temporaries(time, window):
        shape = jax.ShapeDtypeStruct((1, time, 1, 16), jnp.float32)

        def loss(q, k, v):
            return attention(q, k, v, window=window, impl="chunked")[0].sum()

        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    monkeypatch.setattr(chunked, "MAX_STAGES", 4)  # quicker to compile
    for window in (None, 128):
        short, long = temporaries(4096, window), temporaries(8192, window)
        assert long < 2.6 * short, f"window {window}: {short} bytes, then {long}"


def test_a_window_transposes_no_whole_array():
    """Whole arrays leave the caches: with them, time grew faster than the sequence."""
    tokens, shape = 2048, (2, 2048, 2, 8)
    q = jax.ShapeDtypeStruct(shape, jnp.float32)
    gates = jax.ShapeDtypeStruct(shape[:3], jnp.float32)

    def loss(q, k, v, gates):
        options = dict(window=128, log_forget_BTH=gates, impl="chunked")
        return attention(q, k, v, **options)[0].sum()

    def transposes(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "transpose":
                yield equation.invars[0].aval.shape, equation.params["permutation"]
            for inner in jaxprs_in_params(equation.params):
                yield from transposes(inner)

    found = [*transposes(jax.make_jaxpr(jax.grad(loss, (0, 1, 2, 3)))(q, q, q, gates).jaxpr)]
    assert found
    # Those that keep the two last axes copy whole tokens.
    inner = [x for x, axes in found if tuple(axes[-2:]) != (len(axes) - 2, len(axes) - 1)]
    largest = max(inner, key=np.prod)
    assert np.prod(largest) < np.prod(shape) * (chunked.MAX_TOKENS + 256) / tokens, largest


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(window=0), "window must be None, an int >= 1"),
        (dict(k=(2, 5, 3, 8), v=(2, 5, 3, 8)), "multiple of key/value heads, got 4 and 3"),
        (dict(k=(2, 5, 2, 7)), "k must have shape"),
        (dict(v=(2, 4, 2, 8)), "v must agree with k"),
        (dict(segment_ids=jnp.ones((2, 4), jnp.int32)), r"segment_ids must have shape"),
        (dict(segment_ids=jnp.ones((2, 5))), "segment_ids must be integers"),
        (dict(sinks_H=jnp.ones(3)), "sinks_H must have shape"),
        (dict(log_forget_BTH=jnp.ones((2, 5, 2))), "log_forget_BTH must have shape"),
        (dict(heads_per_gate=3), "must divide the 2 query heads of a key/value head, got 3"),
        (dict(soft_cap=0.0), "soft_cap must be"),
        (dict(impl="fast"), "impl must be one of auto, reference, chunked, pallas"),
        (dict(impl="pallas"), "lacks platform=cpu"),
        (dict(initial_state="short"), "initial_state.v_BSGV must have shape"),
    ],
)
def test_errors(change, message):
    shapes = dict(q=(2, 5, 4, 8), k=(2, 5, 2, 8), v=(2, 5, 2, 8))
    arrays = [jnp.zeros(change.pop(name, shape)) for name, shape in shapes.items()]
    if change.get("initial_state") == "short":
        change = dict(
            initial_state=AttentionState(
                jnp.zeros((2, 3, 2, 8)), jnp.zeros((2, 2, 2, 8)), jnp.zeros((2, 3), jnp.int32)
            )
        )
    with pytest.raises(ValueError, match=message):
        attention(*arrays, **change)
