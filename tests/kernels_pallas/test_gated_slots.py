"""Gated slots beside the laws: exact gates, empty slots, dtypes, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from subjects.gated_slots import slots_subject

from kernels_pallas import testing
from kernels_pallas.gated_slots import NEGATIVE, SlotState, empty_state, gated_slots


def drawn(seed=0, batch=1, time=20, heads=2, kv_heads=1, slots=3, size=4, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    q = testing.normal(rng, (batch, time, heads, size), dtype)
    k, v = (testing.normal(rng, (batch, time, kv_heads, size), dtype) for _ in range(2))
    log_gate = jax.nn.log_sigmoid(testing.normal(rng, (batch, time, kv_heads, slots), dtype))
    return q, k, v, log_gate


def test_finite_at_length():
    rng = np.random.default_rng(5)
    ids = testing.draw_segment_ids(rng, 1, 1000)
    testing.check_finite(slots_subject(heads=2, kv_heads=1), rng, 1, 1000, segment_ids=ids)


def test_vmap(x64):
    testing.check_vmap(slots_subject(), np.random.default_rng(7), 3, 1, 20)


@pytest.mark.parametrize("impl", ["reference", "chunked"])
def test_gate_1_sums_outer_products_exactly(impl):
    """Integers, so that no sum is rounded."""
    rng = np.random.default_rng(6)
    q, k, v, log_gate = drawn(time=100)
    k, v, write = (jnp.round(4 * x) for x in (k, v, testing.normal(rng, log_gate.shape, q.dtype)))
    gate_1 = jnp.zeros_like(log_gate)
    _, _, state = gated_slots(q, k, v, gate_1, write, return_state=True, impl=impl)
    want = np.einsum("btgm,btgk->bgmk", write, k)
    np.testing.assert_array_equal(state.k_slots_BGMK, want)
    np.testing.assert_array_equal(state.v_slots_BGMV, np.einsum("btgm,btgk->bgmk", write, v))


def test_gate_0_keeps_only_the_last_token():
    """log-gate -150 is gate 0 and write 1: every slot is the token itself."""
    q, k, v, log_gate = drawn(time=70)
    out, lse = gated_slots(q, k, v, jnp.full_like(log_gate, -150), scale=1.0)
    np.testing.assert_allclose(out, jnp.broadcast_to(v, out.shape), rtol=1e-6)
    want = jnp.einsum("bthk,btgk->bth", q, k) + np.log(3)
    np.testing.assert_allclose(lse, want, rtol=1e-5, atol=1e-5)


def test_one_slot_is_a_gated_sum():
    q, k, v, log_gate = drawn(time=30, slots=1)
    out, _ = gated_slots(q, k, v, log_gate)
    slot, gate = 0, np.exp(np.asarray(log_gate[0, :, 0]))
    for t in range(30):
        slot = gate[t] * slot + (1 - gate[t]) * np.asarray(v[0, t, 0])
        np.testing.assert_allclose(out[0, t, 0], slot, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask_empty", [False, True])
def test_slots_before_the_first_write(mask_empty):
    """Empty slots have M logits of 0 and values of 0. If masked, they are ignored."""
    q, k, v, log_gate = drawn(time=6)
    ids = jnp.asarray([[1, 1, 1, 2, 2, 0]])
    written = jnp.asarray([[False, True, False, False, False, True]])
    out, lse, state = gated_slots(
        q,
        k,
        v,
        log_gate,
        written_BT=written,
        segment_ids=ids,
        mask_empty=mask_empty,
        return_state=True,
    )
    empty = NEGATIVE if mask_empty else np.float32(np.log(3))
    np.testing.assert_allclose(lse[0, [0, 3, 4], 0], [empty] * 3, rtol=1e-6)
    np.testing.assert_array_equal(out[0, [0, 3, 4, 5]], 0)
    np.testing.assert_array_equal(lse[0, 5], np.float32(NEGATIVE))
    assert not np.any(np.abs(lse[0, [1, 2]] - empty) < 1e-6)
    assert not bool(state.written_B[0])


def test_unwritten_tokens_leave_the_slots_as_they_are():
    q, k, v, log_gate = drawn(time=40)
    written = jnp.asarray(np.random.default_rng(0).integers(0, 2, (1, 40)).astype(bool))
    *_, state = gated_slots(q, k, v, log_gate, written_BT=written, return_state=True)
    keep = np.flatnonzero(written[0])
    *_, only = gated_slots(*(x[:, keep] for x in (q, k, v, log_gate)), return_state=True)
    np.testing.assert_allclose(state.k_slots_BGMK, only.k_slots_BGMK, rtol=1e-5, atol=1e-6)


def test_bfloat16_runs_in_float32():
    inputs = drawn(time=70, dtype=jnp.bfloat16)
    out, lse, state = gated_slots(*inputs, return_state=True)
    assert (out.dtype, lse.dtype) == (jnp.bfloat16, jnp.float32)
    assert state.k_slots_BGMK.dtype == state.v_slots_BGMV.dtype == jnp.float32
    exact, _ = gated_slots(*(x.astype(jnp.float32) for x in inputs))
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(q_BTHK=jnp.zeros((1, 5, 3, 4))),
            "must be a multiple of key/value heads, got 3 and 2",
        ),
        (dict(k_BTGK=jnp.zeros((1, 5, 2, 3))), r"k must have shape \(B, T, G, K\)"),
        (dict(v_BTGV=jnp.zeros((1, 4, 2, 3))), "v must agree with k"),
        (dict(log_gate_BTGM=jnp.zeros((1, 5, 1, 6))), "log_gate must have shape"),
        (dict(log_gate_BTGM=jnp.zeros((1, 5, 2, 0))), r"log_gate must .* and M >= 1"),
        (dict(write_BTGM=jnp.zeros((1, 5, 2, 5))), "write must have shape"),
        (dict(log_gate_BTGM=jnp.zeros((1, 5, 2, 6), jnp.int32)), "log_gate must be floating"),
        (dict(written_BT=jnp.zeros((1, 5))), "written must be boolean"),
        (dict(segment_ids=jnp.ones((1, 5))), "segment_ids must be integers"),
        (dict(scale=jnp.float32(1)), "scale must be None or a Python number"),
        (dict(impl="pallas"), "lacks platform=cpu"),
        (
            dict(initial_state=empty_state(1, 2, 5, 4, 3)),
            "initial_state.k_slots_BGMK must have shape",
        ),
        (
            dict(initial_state=SlotState(*empty_state(1, 2, 6, 4, 3)[:3], jnp.zeros(2, bool))),
            "initial_state.written_B must have shape",
        ),
    ],
)
def test_errors(change, message):
    arguments = dict(
        q_BTHK=jnp.zeros((1, 5, 4, 4)),
        k_BTGK=jnp.zeros((1, 5, 2, 4)),
        v_BTGV=jnp.zeros((1, 5, 2, 3)),
        log_gate_BTGM=jnp.zeros((1, 5, 2, 6)),
    )
    with pytest.raises(ValueError, match=message):
        gated_slots(**(arguments | change))
