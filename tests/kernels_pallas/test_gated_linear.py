"""Gated linear attention beside the laws: special cases, groups, float32, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects.gated_linear import gated_subject

from kernels_pallas import testing
from kernels_pallas.gated_linear import GatedLinearState, gated_linear


def integers(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).integers(-3, 4, shape), jnp.float32)


DECAY_SHAPES = [(2,), (1, 150, 2), (1, 150, 2, 3)]


@pytest.mark.parametrize("shape", DECAY_SHAPES)
def test_no_decay_is_the_sum_of_outer_products(shape):
    """Log-decay 0 is exact: sums of integers are not rounded."""
    q, k, v = integers(0, 1, 150, 2, 3), integers(1, 1, 150, 2, 3), integers(2, 1, 150, 2, 4)
    o, state = gated_linear(q, k, v, jnp.zeros(shape), return_state=True)
    s = np.cumsum(np.einsum("bthk,bthv->bthkv", k, v), axis=1)
    np.testing.assert_array_equal(o, np.einsum("bthk,bthkv->bthv", q, s))
    np.testing.assert_array_equal(state.s_BHKV, s[:, -1])


@pytest.mark.parametrize("log_decay", [-150.0, -jnp.inf])
@pytest.mark.parametrize("shape", DECAY_SHAPES)
def test_full_decay_leaves_each_token_itself(shape, log_decay):
    q, k, v = integers(3, 1, 150, 2, 3), integers(4, 1, 150, 2, 3), integers(5, 1, 150, 2, 4)
    o = gated_linear(q, k, v, jnp.full(shape, log_decay), scale=0.5)
    np.testing.assert_array_equal(o, 0.5 * jnp.sum(q * k, -1, keepdims=True) * v)


def test_the_three_shapes_of_a_decay_agree(x64):
    rng = np.random.default_rng(6)
    subject = gated_subject(groups=2, ratio=2)
    inputs = subject.inputs(rng, 2, 100, jnp.float64)
    fixed_H = -jnp.asarray(rng.random(4))
    token_BTH = jnp.broadcast_to(fixed_H[None, None], (2, 100, 4))
    channel_BTHK = jnp.broadcast_to(token_BTH[..., None], (2, 100, 4, 5))
    ids = testing.draw_segment_ids(rng, 2, 100)
    one, two, three = (
        gated_linear(inputs["q"], inputs["k"], inputs["v"], decay, segment_ids=ids)
        for decay in (fixed_H, token_BTH, channel_BTHK)
    )
    testing.assert_close("per token = fixed", two, one, 1e-12)
    testing.assert_close("per channel = fixed", three, one, 1e-12)


def test_a_weak_gate_behind_a_strong_one_keeps_its_digits():
    """float32 cumulative sums near -6000 would have an error of 5e-4 in a later log-decay."""
    rng = np.random.default_rng(7)
    subject = gated_subject(groups=1, ratio=1)
    inputs = subject.inputs(rng, 1, 64, jnp.float32)
    log_decay = jnp.where(jnp.arange(64) < 50, -120.0, -0.01)[None, :, None]
    got, want = (
        gated_linear(inputs["q"], inputs["k"], inputs["v"], log_decay, impl=impl)
        for impl in ("chunked", "reference")
    )
    testing.assert_close("chunked = reference", got, want, 2e-6)


@pytest.mark.parametrize("decay", ["head", "token", "channel"])
def test_vmap(x64, decay):
    testing.check_vmap(gated_subject(decay=decay), np.random.default_rng(8), 2, 1, 40)


@pytest.mark.slow
@pytest.mark.parametrize("decay", ["head", "token", "channel"])
@pytest.mark.parametrize("time", [1, 63, 127, 1000])
def test_finite(decay, time):
    rng = np.random.default_rng(9)
    ids = testing.draw_segment_ids(rng, 1, time)
    testing.check_finite(gated_subject(decay=decay), rng, 1, time, segment_ids=ids)


@pytest.mark.parametrize("decay", ["token", "channel"])
def test_memory_is_linear_in_time(decay):
    def temporary(time):
        subject = gated_subject(groups=2, ratio=1, key_size=16, value_size=16, decay=decay)
        arrays = jax.eval_shape(
            lambda: subject.inputs(np.random.default_rng(10), 1, time, jnp.float32)
        )

        def loss(inputs):
            return jnp.sum(subject.apply(inputs, {}, None, None, "chunked")[0]["o"])

        compiled = jax.jit(jax.grad(loss)).lower(arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(4096) <= 4.2 * temporary(1024)


def test_bfloat16_runs_in_float32():
    q = jnp.ones((1, 300, 1, 1), jnp.bfloat16)
    o, state = gated_linear(q, q, q, jnp.zeros(1, jnp.bfloat16), return_state=True)
    assert o.dtype == jnp.bfloat16
    assert state.s_BHKV.dtype == jnp.float32
    assert float(state.s_BHKV[0, 0, 0, 0]) == 300  # bfloat16 would stop at 256


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(q=jnp.zeros((2, 5, 3))), r"q must have shape \(B, T, G, K\)"),
        (dict(k=jnp.zeros((2, 5, 1, 3))), r"k must have shape \(B, T, G, K\) = \(2, 5, 2, 3\)"),
        (dict(v=jnp.zeros((2, 5, 3, 6))), "must be a multiple of the 2 query/key heads, got 3"),
        (
            dict(q=jnp.zeros((2, 5, 0, 3)), k=jnp.zeros((2, 5, 0, 3))),
            "must be a multiple of the 0 query/key heads, got 4",
        ),
        (dict(v=jnp.zeros((2, 6, 4, 6))), r"v must have shape \(B, T, H, V\) = \(2, 5, 4, 6\)"),
        (dict(log_decay=jnp.zeros((2, 5, 2))), r"\(B, T, H\) = \(2, 5, 4\) or"),
        (dict(log_decay=jnp.zeros(4, jnp.int32)), "log_decay must be floating point"),
        (dict(segment_ids=jnp.ones((2, 5))), "segment_ids must be integers"),
        (dict(impl="pallas"), "lacks platform=cpu"),
        (
            dict(initial_state=GatedLinearState(jnp.zeros((2, 4, 6, 3)), jnp.zeros(2, jnp.int32))),
            "initial_state.s_BHKV must have shape",
        ),
    ],
)
def test_errors(change, message):
    arrays = dict(
        q=jnp.zeros((2, 5, 2, 3)),
        k=jnp.zeros((2, 5, 2, 3)),
        v=jnp.zeros((2, 5, 4, 6)),
        log_decay=jnp.zeros(4),
    )
    options = {name: value for name, value in change.items() if name not in arrays}
    arrays |= {name: value for name, value in change.items() if name in arrays}
    with pytest.raises(ValueError, match=message):
        gated_linear(*arrays.values(), **options)
