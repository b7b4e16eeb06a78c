"""The delta rule beside the laws: special cases, its inverse, precision, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects.delta_rule import delta_subject

from kernels_pallas import testing
from kernels_pallas.delta_rule import DeltaRuleState, chunked, scores
from kernels_pallas.delta_rule import delta_rule as op
from kernels_pallas.delta_rule.product import delta_product

delta_rule = jax.jit(op, static_argnames=("scale", "return_state", "impl"))

#: One gate by default, all with the slow tests.
ONE_GATE = ["channel", *(pytest.param(gate, marks=pytest.mark.slow) for gate in ("none", "head"))]


def draw(rng, heads=2, dtype=jnp.float64):
    """q, k of length 1, v and beta in [0, 2] of two rows of 70 tokens."""
    q, k, v = (rng.standard_normal((2, 70, heads, size)) for size in (8, 8, 5))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    return tuple(jnp.asarray(x, dtype) for x in (q, k, v, rng.uniform(0, 2, (2, 70, heads))))


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["none", "head", "channel"])
@pytest.mark.parametrize("time", [1, 63, 127, 1000])
def test_finite(time, gate):
    rng = np.random.default_rng(5)
    ids = testing.draw_segment_ids(rng, 2, time)
    testing.check_finite(delta_subject(gate), rng, 2, time, segment_ids=ids)


@pytest.mark.slow
@pytest.mark.parametrize("key_size, value_size", [(128, 256), (60, 100), (256, 32)])
def test_large_heads(key_size, value_size):
    subject = delta_subject("channel", 1, 2, key_size, value_size)
    testing.check_forms(subject, np.random.default_rng(6), 1, 130, jnp.float32, 1e-5)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_orthogonal_keys_are_a_lookup_table(x64, impl):
    """With beta 1 and one-hot keys S is exactly the newest value of each key."""
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 8, 100)
    one_hot = jnp.eye(8)[keys][None, :, None]
    v = jnp.asarray(rng.integers(-8, 9, (1, 100, 1, 3)), jnp.float64)
    o, state = delta_rule(
        one_hot, one_hot, v, jnp.ones((1, 100, 1)), scale=1.0, return_state=True, impl=impl
    )
    np.testing.assert_array_equal(o, v)
    newest = [int(np.flatnonzero(keys == key)[-1]) for key in range(8)]
    np.testing.assert_array_equal(state.s_BHKV[0, 0], v[0, newest, 0])


def test_small_beta_is_linear_attention(x64):
    """To first order in beta there is no correction: o = beta * causal sum of (q . k) v."""
    q, k, v, _ = draw(np.random.default_rng(1))
    beta = 1e-9
    o = delta_rule(q, k, v, jnp.full(q.shape[:3], beta), scale=1.0)
    weights = jnp.tril(jnp.einsum("bthk,bshk->bhts", q, k))
    testing.assert_close("small beta", o / beta, jnp.einsum("bhts,bshv->bthv", weights, v), 1e-6)


def test_gates_agree_where_they_mean_the_same(x64):
    rng = np.random.default_rng(2)
    q, k, v, beta = draw(rng)
    g = -jnp.asarray(rng.exponential(1, beta.shape))
    per_channel = jnp.broadcast_to(g[..., None], k.shape)
    none, head, channel = (
        delta_rule(q, k, v, beta, gate) for gate in (None, jnp.zeros_like(g), per_channel * 0)
    )
    testing.assert_close("gate 1", (head, channel), (none, none), 1e-12)
    head, channel = (delta_rule(q, k, v, beta, gate) for gate in (g, per_channel))
    testing.assert_close("equal channels", channel, head, 1e-12)


@pytest.mark.parametrize("gate", ONE_GATE)
def test_the_default_erase_key_is_k(x64, gate):
    subject = delta_subject(gate)
    rng = np.random.default_rng(9)
    inputs, state = subject.inputs(rng, 2, 70, jnp.float64), subject.state(rng, 2, jnp.float64)
    run = testing.runner(subject, "chunked")
    ids = testing.draw_segment_ids(rng, 2, 70)
    cotangents = testing.draw_cotangents(rng, subject, "chunked", inputs, {}, ids, state)
    want = run(inputs, {}, ids, state, cotangents)
    got = run(dict(inputs, erase=inputs["k"]), {}, ids, state, cotangents)
    gradients = got["gradients"][0]
    gradients["k"] += gradients.pop("erase")
    testing.assert_close("erase key k", got, want, 1e-12)


def literally(q, k, v, a, b, w):
    """Gated DeltaNet-2 as its paper writes it (arXiv:2605.22791): matrices, token by token, no scale."""
    batch, time, heads, size = k.shape
    o = np.zeros(v.shape)
    for n, h in np.ndindex(batch, heads):
        s = np.zeros((size, v.shape[-1]))
        for t in range(time):
            k_t, d_t = k[n, t, h], np.diag(a[n, t, h])
            transition = np.eye(size) - np.outer(k_t, b[n, t, h] * k_t)
            s = transition @ d_t @ s + np.outer(k_t, w[n, t, h] * v[n, t, h])
            o[n, t, h] = s.T @ q[n, t, h]
    return o


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_gated_deltanet_2_is_the_literal_recurrence(x64, impl):
    rng = np.random.default_rng(10)
    q, k, v, _ = (np.asarray(x) for x in draw(rng))
    a, b, w = rng.uniform(0, 1, k.shape), rng.uniform(0, 1, k.shape), rng.uniform(0, 1, v.shape)
    arrays = [jnp.asarray(x) for x in (q, k, w * v)]
    erase = jnp.asarray(b * k)
    o = delta_rule(*arrays, None, jnp.log(a), erase_BTGK=erase, scale=1.0, impl=impl)
    testing.assert_close("literal", o, literally(q, k, v, a, b, w), 1e-10)


def test_gated_deltanet_2_with_one_gate_is_kimi_delta_attention(x64):
    """b = w = beta: the erase key beta k with values beta v."""
    rng = np.random.default_rng(11)
    q, k, v, beta = draw(rng)
    g = -jnp.asarray(rng.exponential(1, k.shape))
    strength = beta[..., None]
    got = delta_rule(q, k, strength * v, None, g, erase_BTGK=strength * k)
    testing.assert_close("one gate", got, delta_rule(q, k, v, beta, g), 1e-12)


def check_several_updates(gate, rule=delta_rule):
    """A token's decay comes before its first update, its output after its last one; packed documents
    are separate, and a sequence may be split between any two tokens."""
    rng = np.random.default_rng(12)
    shape, ids = (1, 30, 3), np.repeat(np.int32([[1, 2]]), [13, 17], axis=1)
    k, v, e = (rng.standard_normal((*shape, 2, size)) / 3 for size in (4, 5, 4))
    q, beta = rng.standard_normal((1, 30, 2, 4)), rng.uniform(0, 1, (*shape, 2))
    g = -rng.exponential(1, dict(none=(1, 30, 2), head=(1, 30, 2), channel=q.shape)[gate])
    o, a = np.zeros((1, 30, 2, 5)), np.ones((1, 30, 2, 1))
    if gate != "none":
        a = np.exp(g).reshape(1, 30, 2, -1)
    for h in range(2):
        s = np.zeros((4, 5))
        for t in range(30):
            s = 0 * s if t == 13 else a[0, t, h][:, None] * s
            for n in range(3):
                error = v[0, t, n, h] - s.T @ e[0, t, n, h]
                s = s + beta[0, t, n, h] * np.outer(k[0, t, n, h], error)
            o[0, t, h] = s.T @ q[0, t, h]

    def run(span, state=None):
        arrays = [jnp.asarray(x[:, span]) for x in (q, k, v, beta)]
        gates = None if gate == "none" else jnp.asarray(g[:, span])
        options = dict(erase_BTNGK=jnp.asarray(e[:, span]), segment_ids=jnp.asarray(ids[:, span]))
        return delta_product(
            rule,
            *arrays,
            gates,
            **options,
            scale=1.0,
            initial_state=state,
            return_state=True,
        )

    whole, final = run(slice(None))
    testing.assert_close("literal", whole, o, 1e-10)
    first, state = run(slice(0, 19))
    second, split_final = run(slice(19, 30), state)
    testing.assert_close("split", jnp.concatenate([first, second], axis=1), whole, 1e-10)
    testing.assert_close("final state", split_final, final, 1e-10)


@pytest.mark.parametrize("gate", ONE_GATE)
def test_several_updates_a_token_in_documents_and_pieces(x64, gate):
    check_several_updates(gate)


def decays_at_every_update(*arrays, **options):
    *others, log_decay = arrays
    return delta_rule(*others, jnp.repeat(log_decay[:, ::3], 3, axis=1), **options)


def decays_before_the_last_update(*arrays, **options):
    *others, log_decay = arrays
    return delta_rule(*others, jnp.roll(log_decay, 2, axis=1), **options)


def reads_after_the_first_update(q, *others, **options):
    o, state = delta_rule(jnp.roll(q, -2, axis=1), *others, **options)
    return jnp.roll(o, 2, axis=1), state


def updates_in_reverse(q, k, v, beta, log_decay, *, erase_BTGK, **options):
    def reverse(x):
        return jnp.flip(x.reshape(1, -1, 3, *x.shape[2:]), axis=2).reshape(x.shape)

    reversed_ = map(reverse, (k, v, beta))
    return delta_rule(q, *reversed_, log_decay, erase_BTGK=reverse(erase_BTGK), **options)


@pytest.mark.parametrize(
    "fault",
    [
        decays_at_every_update,
        decays_before_the_last_update,
        reads_after_the_first_update,
        updates_in_reverse,
    ],
)
def test_planted_faults_of_several_updates_are_caught(x64, fault):
    """Of three updates a token; the faulty rule takes the arguments that the product hands on."""
    with pytest.raises(AssertionError, match="literal: .* off by"):
        check_several_updates("channel", fault)


def test_updates_must_agree_in_number():
    with pytest.raises(
        ValueError, match=r"v must have the first axes \(B, T, N\) of k, \(2, 5, 3\)"
    ):
        updates = jnp.zeros((2, 5, 3, 2, 3))
        ids = jnp.ones((2, 5), jnp.int32)
        delta_product(op, K, updates, updates[:, :, :2], segment_ids=ids)


def test_repeated_key_heads_equal_grouped_ones(x64):
    rng = np.random.default_rng(3)
    q, k, _, _ = draw(rng)
    _, _, v, beta = draw(rng, heads=6)
    want = delta_rule(jnp.repeat(q, 3, axis=2), jnp.repeat(k, 3, axis=2), v, beta)
    testing.assert_close("grouped = repeated", delta_rule(q, k, v, beta), want, 1e-12)


def test_weak_decays_keep_their_digits_beside_strong_ones():
    """exp(g) of a weak gate is exact in float32 after gates of -150 in the chunk."""
    rng = np.random.default_rng(4)
    subject = delta_subject("head", kv_heads=1, repeats=1)
    inputs = subject.inputs(rng, 1, 64, jnp.float32)
    g = jnp.full((1, 64, 1), -150.0).at[:, 50:].set(-1e-3)
    run = jax.jit(subject.apply, static_argnums=4)
    inputs = dict(inputs, log_decay=g)
    o = [run(inputs, {}, None, None, impl)[0]["o"] for impl in ("chunked", "reference")]
    testing.assert_close("weak beside strong", *o, 1e-6)


@pytest.mark.parametrize("size, block", [(1, 1), (2, 2), (8, 8), (64, 8), (64, 32)])
def test_inverse(x64, size, block):
    """Includes a matrix whose powers grow: with beta 2 and equal keys every entry is 2."""
    keys = np.random.default_rng(size).standard_normal((size, 16))
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    a = np.tril([2 * keys @ keys.T, np.full((size, size), 2.0)], -1)
    inverse = functools.partial(chunked.inverse_from_blocks, block=block)
    got = np.asarray(jax.jit(inverse)(jnp.asarray(a)))
    np.testing.assert_array_equal(np.triu(got, 1), 0)
    np.testing.assert_allclose(got, np.linalg.inv(np.eye(size) + a), rtol=0, atol=1e-10)
    sign = (-1.0) ** np.subtract.outer(np.arange(size), np.arange(size))
    np.testing.assert_array_equal(got[1], np.tril(2 * sign, -1) + np.eye(size))


@pytest.mark.parametrize("length", [1, 2, 64])
def test_decays_are_products_of_those_between(x64, length):
    """Of gates of all strengths, 0 included, and their gradients, against products one by one."""
    rng = np.random.default_rng(length)
    log_decay = -rng.exponential(rng.choice([0.01, 1, 100], (2, length)))
    log_decay[0, length // 2] = -np.inf
    weights = [
        rng.standard_normal((2, *shape)) for shape in [(length, length), (length,), (length,)]
    ]
    i, s = np.arange(length)[:, None, None], np.arange(length)
    spans = (s > np.arange(length)[:, None]) & (s <= i), s <= i[..., 0], s > i[..., 0]

    def one_by_one(log_decay):
        gates = [jnp.where(x, log_decay.reshape(2, *[1] * (x.ndim - 1), -1), 0) for x in spans]
        return tuple(jnp.exp(jnp.sum(x, axis=-1)) for x in gates)

    def total(decays, log_decay):
        return sum(jnp.sum(w * d) for w, d in zip(weights, decays(log_decay)))

    for name, run in {"decays": lambda f, x: f(x), "gradients": jax.grad(total, argnums=1)}.items():
        forms = scores.decays_per_head, one_by_one
        got, want = (jax.jit(lambda x, f=f, run=run: run(f, x))(log_decay) for f in forms)
        testing.assert_close(name, got, want, 1e-12)


def test_vmap(x64):
    testing.check_vmap(delta_subject("channel"), np.random.default_rng(7), 3, 1, 20)


def test_bfloat16_keeps_a_float32_state():
    q, k, v, beta = draw(np.random.default_rng(8), dtype=jnp.bfloat16)
    o, state = delta_rule(q, k, v, beta, -beta.astype(jnp.float32), return_state=True)
    assert o.dtype == jnp.bfloat16 and state.s_BHKV.dtype == jnp.float32


def test_chunks_are_powers_of_two():
    assert [chunked.chunk_length(t) for t in (1, 2, 3, 63, 64, 65, 4096)] == [1, 2, 4] + [64] * 4


K, V, BETA = jnp.zeros((2, 5, 2, 3)), jnp.zeros((2, 5, 4, 6)), jnp.zeros((2, 5, 4))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(k=jnp.zeros((2, 5, 3))), r"k must have shape \(B, T, G, K\) with T >= 1"),
        (dict(q=jnp.zeros((2, 5, 1, 3))), r"q must have shape \(B, T, G, K\) = \(2, 5, 2, 3\)"),
        (dict(v=jnp.zeros((2, 4, 4, 6))), r"with \(B, T\) = \(2, 5\)"),
        (dict(v=jnp.zeros((2, 5, 3, 6))), "a multiple of query/key heads, got 3 and 2"),
        (dict(beta=jnp.zeros((2, 5, 2))), r"beta must have shape \(B, T, H\) = \(2, 5, 4\)"),
        (dict(erase_BTGK=V), r"erase must have shape \(B, T, G, K\) = \(2, 5, 2, 3\)"),
        (dict(log_decay=jnp.zeros((2, 5, 2))), r"log_decay must have shape \(B, T, H\)"),
        (dict(log_decay=jnp.zeros((2, 5, 4, 6))), r"log_decay must have shape \(B, T, H, K\)"),
        (dict(v=jnp.zeros((2, 5, 4, 6), jnp.int32)), "v must be floating point"),
        (dict(scale=jnp.ones(())), "scale must be None or a Python number"),
        (dict(segment_ids=jnp.ones((2, 5))), "segment_ids must be integers"),
        (dict(impl="pallas"), "lacks platform=cpu"),
        (
            dict(initial_state=DeltaRuleState(jnp.zeros((2, 4, 6, 3)), jnp.zeros(2, jnp.int32))),
            "initial_state.s_BHKV must have shape",
        ),
    ],
)
def test_errors(change, message):
    arguments = dict(q=K, k=K, v=V, beta=BETA) | change
    arrays = [arguments.pop(name) for name in ("q", "k", "v", "beta")]
    with pytest.raises(ValueError, match=message):
        op(*arrays, **arguments)
