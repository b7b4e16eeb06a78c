"""Equalities of attention alone: chunks, gates, norms, temperatures and costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.errors import ConfigError
from hybridlm.models.mixers import LayerSpec, read_mixer
from hybridlm.models.mixers.spans import Chunk
from hybridlm.models.positional import (
    Rope,
    RopeConfig,
    Temperature,
    TemperatureConfig,
    halves_from_pairs,
)
from kernels_pallas.attention import attention

WIDTH = 32


def build(**settings):
    config = read_mixer(settings, "m")
    config.check_width(WIDTH)
    return config, config.build(LayerSpec(WIDTH, 1e-6, 1.0), rngs=nnx.Rngs(0))


def kernel_flops(mixer) -> int:
    """2 FLOPs for each entry of a matrix."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(mixer)))
    return sum(2 * x.size for path, x in leaves if path[-1].key == "kernel")


@given(seq_len=st.integers(1, 60), chunk=st.integers(1, 80))
def test_mean_keys_in_chunks_counts_the_mask(seq_len, chunk):
    t = np.arange(seq_len)
    seen = (t[:, None] >= t[None, :]) & (t[:, None] // chunk == t[None, :] // chunk)
    assert Chunk(chunk).mean_keys(seq_len) == pytest.approx(seen.sum() / seq_len)


def test_chunks_are_a_mask_on_positions():
    """The result equals dense softmax with an explicit mask, for documents of odd lengths."""
    _, mixer = build(kind="attention", heads=2, chunk=4)
    ids = np.array([[1] * 7 + [2] * 9 + [1] + [0] * 2 + [3] * 6])
    context = small.context(ids)
    x = jax.random.normal(jax.random.key(0), (*ids.shape, WIDTH))
    q, k, v = mixer._project(x, context)
    document = np.cumsum(np.diff(ids[0], prepend=-1) != 0)
    t = np.arange(ids.shape[1])
    chunk = context.positions_BT[0] // 4
    seen = (t[:, None] >= t[None, :]) & (document[:, None] == document) & (ids[0] != 0)
    seen &= chunk[:, None] == chunk[None, :]
    logits = jnp.einsum("bthk,bshk->bhts", q, k) * mixer.scale
    weights = jax.nn.softmax(jnp.where(seen[None, None], logits, -1e30), axis=-1) * seen[None, None]
    want = mixer._output(jnp.einsum("bhts,bshv->bthv", weights, v), x, context)
    np.testing.assert_allclose(mixer(x, context), want, atol=1e-5)


def test_a_chunk_is_full_attention_up_to_its_size_and_then_forgets():
    _, full = build(kind="attention", heads=2)
    _, chunked = build(kind="attention", heads=2, chunk=8)
    x = jax.random.normal(jax.random.key(0), (1, 9, WIDTH))
    context = small.context(np.ones((1, 9)))
    a, b = full(x, context), chunked(x, context)
    np.testing.assert_allclose(a[:, :8], b[:, :8], atol=1e-6)
    alone = full.out(full.v(x[:, 8:]))  # the ninth token sees itself alone
    np.testing.assert_allclose(b[:, 8:], alone, atol=1e-5)


def test_chunk_and_window_exclude_each_other():
    with pytest.raises(ConfigError, match="m.chunk goes without window"):
        read_mixer(dict(kind="attention", heads=2, chunk=4, window=4), "m")
    with pytest.raises(ConfigError, match="m.chunk must be at least 1"):
        read_mixer(dict(kind="attention", heads=2, chunk=0), "m")
    with pytest.raises(ConfigError, match="m.chunk must be below 2"):
        read_mixer(dict(kind="attention", heads=2, chunk=2**31), "m")
    with pytest.raises(ConfigError, match="m.qk_norm must be True or False or"):
        read_mixer(dict(kind="attention", heads=2, qk_norm="l1"), "m")


@pytest.mark.parametrize("gate", [False, True, "head"])
def test_flops_of_gates_and_chunks(gate):
    config, mixer = build(kind="attention", heads=4, kv_heads=2, chunk=5, output_gate=gate)
    keys = 4 * WIDTH * Chunk(5).mean_keys(33)
    assert config.flops_per_token(WIDTH, 33) == pytest.approx(kernel_flops(mixer) + keys)


def test_forget_gates_start_as_published_and_are_counted():
    """Biases of 0 and projections as all others: before training a gate is about a half."""
    config, mixer = build(kind="attention", heads=4, kv_heads=2, rope=None, forget_gate=True)
    kernel, bias = mixer.forget.proj.kernel[...], mixer.forget.proj.bias[...]
    assert kernel.shape == (WIDTH, 4) and bias.shape == (4,) and not np.any(bias)
    assert abs(float(jnp.std(kernel)) * WIDTH**0.5 - 1) < 0.2
    half = mixer.forget(jnp.zeros((1, 3, WIDTH)))
    np.testing.assert_allclose(half, np.full((1, 3, 4), np.log(0.5)), rtol=1e-6)
    pairs = 4 * WIDTH * 17  # the mean number of keys of 33 tokens
    assert config.flops_per_token(WIDTH, 33) == pytest.approx(kernel_flops(mixer) + pairs)


@given(key=st.integers(1, 9), value=st.integers(1, 9), gate=st.sampled_from([False, True, "head"]))
def test_costs_of_values_of_another_size_than_keys(key, value, gate):
    settings = dict(kind="attention", heads=4, kv_heads=2, head_dim=2 * key, value_dim=value)
    config = read_mixer(settings | dict(output_gate=gate), "m")
    mixer = nnx.eval_shape(lambda: config.build(LayerSpec(WIDTH, 1e-6, 1.0), rngs=nnx.Rngs(0)))
    attended = 2 * 4 * (2 * key + value) * 17  # the mean number of keys of 33 tokens
    assert config.flops_per_token(WIDTH, 33) == pytest.approx(kernel_flops(mixer) + attended)
    cache = jax.eval_shape(lambda: mixer.init_state(1, 33, jnp.bfloat16))
    assert config.state_bytes(WIDTH, 33) == sum(2 * x.size for x in cache.entries)


def test_values_of_a_smaller_size_are_larger_ones_whose_rest_is_zero():
    """With a factor on them: dense softmax over padded values, halved."""
    settings = dict(kind="attention", heads=4, kv_heads=2, window=5, sinks=True, value_dim=3)
    _, narrow = build(**settings, value_scale=0.5)
    _, wide = build(**settings | dict(value_dim=8))
    for name in ("q", "k"):
        getattr(wide, name).kernel[...] = getattr(narrow, name).kernel[...]
    v_DGV = narrow.v.kernel[...].reshape(WIDTH, 2, 3)
    wide.v.kernel[...] = jnp.pad(v_DGV / 2, ((0, 0), (0, 0), (0, 5))).reshape(WIDTH, -1)
    out_HVD = narrow.out.kernel[...].reshape(4, 3, WIDTH)
    wide.out.kernel[...] = jnp.pad(out_HVD, ((0, 0), (0, 5), (0, 0))).reshape(-1, WIDTH)
    ids = np.repeat([1, 2, 0], [9, 7, 2])[None]
    x = jax.random.normal(jax.random.key(0), (*ids.shape, WIDTH))
    context = small.context(ids)
    np.testing.assert_allclose(narrow(x, context), wide(x, context), atol=1e-6)


def test_values_that_are_keys_have_no_size_of_their_own():
    with pytest.raises(ConfigError, match="m.value_dim is 4, and values that are keys"):
        read_mixer(dict(kind="attention", heads=2, head_dim=8, values="keys", value_dim=4), "m")


def test_a_head_gate_is_an_elementwise_gate_with_repeated_columns():
    _, whole = build(kind="attention", heads=4, output_gate=True)
    _, head = build(kind="attention", heads=4, output_gate="head")
    whole.gate.proj.kernel[...] = jnp.repeat(head.gate.proj.kernel[...], WIDTH // 4, axis=1)
    for name in ("q", "k", "v", "out"):
        getattr(whole, name).kernel[...] = getattr(head, name).kernel[...]
    x = jax.random.normal(jax.random.key(0), (1, 5, WIDTH))
    context = small.context(np.ones((1, 5)))
    np.testing.assert_allclose(head(x, context), whole(x, context), atol=1e-6)


def test_l2_norm_has_no_parameters_and_unit_rms():
    _, mixer = build(kind="attention", heads=4, qk_norm="l2")
    assert not jax.tree.leaves(nnx.state(mixer.q_norm))
    y = mixer.q_norm(7 * jax.random.normal(jax.random.key(0), (2, 3, 4, 8)))
    np.testing.assert_allclose(jnp.mean(y**2, -1), np.ones((2, 3, 4)), rtol=1e-4)


def test_temperatures_are_the_published_formulas():
    p = np.array([[0, 1, 8190, 8191, 16383, 100_000]])
    q = jnp.ones((1, p.shape[1], 1, 2))
    logarithm = Temperature(TemperatureConfig(scale=500.0))(q, jnp.asarray(p))
    want = np.log(500.0 + p) / np.log(500.0)
    np.testing.assert_allclose(logarithm[0, :, 0, 0], want[0], rtol=1e-6)
    llama = Temperature(TemperatureConfig(scale=8192.0, strength=0.1, steps=True))
    want = np.log1p(np.floor((p + 1) / 8192)) * 0.1 + 1
    np.testing.assert_allclose(llama(q, jnp.asarray(p))[0, :, 0, 0], want[0], rtol=1e-6)
    ministral = Temperature(TemperatureConfig(scale=8191.0, strength=0.1, steps="from_zero"))
    want = np.log1p(np.floor(p / 8191)) * 0.1 + 1
    np.testing.assert_allclose(ministral(q, jnp.asarray(p))[0, :, 0, 0], want[0], rtol=1e-6)


def test_temperature_scales_logits():
    _, plain = build(kind="attention", heads=2, rope=None)
    _, grown = build(kind="attention", heads=2, rope=None, temperature=dict(scale=3.0))
    x = jax.random.normal(jax.random.key(0), (1, 6, WIDTH))
    context = small.context(np.ones((1, 6)))
    q, k, v = plain._project(x, context)
    factor = np.log(3.0 + np.arange(6)) / np.log(3.0)
    want = plain._output(attention(q * factor[None, :, None, None], k, v)[0], x, context)
    np.testing.assert_allclose(grown(x, context), want, atol=1e-6)


def test_halves_from_pairs_maps_weights_of_interleaved_rope():
    """Logits of a model that rotates neighbouring dimensions, from permuted queries and keys."""
    rng = np.random.default_rng(0)
    size, positions = 8, np.array([[0, 3, 11]])
    q, k = rng.standard_normal((2, 1, 3, 1, size))
    angle = positions[0, :, None] * 100.0 ** (-np.arange(size // 2) / (size // 2))

    def rotate_pairs(x):
        z = (x[0, :, 0, 0::2] + 1j * x[0, :, 0, 1::2]) * np.exp(1j * angle)
        return z

    want = np.real(rotate_pairs(q) @ np.conj(rotate_pairs(k)).T)
    rope, order = Rope(RopeConfig(theta=100.0), size), halves_from_pairs(size)
    ours = [rope(jnp.asarray(x[..., order], jnp.float32), jnp.asarray(positions)) for x in (q, k)]
    np.testing.assert_allclose(jnp.einsum("bthk,bshk->bts", *ours)[0], want, atol=1e-5)
    rope = Rope(RopeConfig(theta=100.0, interleaved=True), size)
    ours = [rope(jnp.asarray(x, jnp.float32), jnp.asarray(positions)) for x in (q, k)]
    np.testing.assert_allclose(jnp.einsum("bthk,bshk->bts", *ours)[0], want, atol=1e-5)
    pairs = ours[0][0, :, 0, 0::2] + 1j * ours[0][0, :, 0, 1::2]
    np.testing.assert_allclose(pairs, rotate_pairs(q), atol=1e-5)


def test_the_contexts_window_narrows_only_windows():
    """One program serves all windows and equals mixers built with them."""
    ids = np.array([[1] * 9 + [2] * 14 + [0] * 2])
    context = small.context(ids)
    x = jax.random.normal(jax.random.key(1), (*ids.shape, WIDTH))
    _, windowed = build(kind="attention", heads=2, window=12)
    _, full = build(kind="attention", heads=2, rope=None)
    run = jax.jit(lambda mixer_x, window: windowed(mixer_x, context._replace(window=window)))
    for window in (1, 3, 12, 40):
        want = windowed.narrowed(window)(x, context)
        np.testing.assert_allclose(run(x, jnp.int32(window)), want, atol=1e-6)
    narrow = context._replace(window=jnp.int32(2))
    np.testing.assert_array_equal(full(x, narrow), full(x, context))
    rows = jnp.array([[5, 20]])
    got = windowed.attention_rows(x, narrow, rows)
    want = windowed.narrowed(2).attention_rows(x, context, rows)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)
    with pytest.raises(ValueError, match="parallel form"):
        windowed.extend(x, narrow, windowed.init_state(1, 30, jnp.float32))


def test_chunks_separate_ids_that_differ_only_in_the_highest_bit():
    """In both forms; shifting ids left by one bit would merge them."""
    small_ids = np.repeat([1, 2, 1, 0, 3], [5, 7, 4, 2, 6])[None]
    huge = np.array([0, 1, 1 - 2**31, -(2**31)])[small_ids]
    _, mixer = build(kind="attention", heads=2, chunk=4)
    x = jax.random.normal(jax.random.key(0), (*small_ids.shape, WIDTH))

    @jax.jit
    def run(context):
        state, outs = mixer.init_state(1, 24, jnp.float32), []
        for piece in (slice(0, 6), slice(6, 7), slice(7, 8), slice(8, 21), slice(21, 24)):
            part = jax.tree.map(lambda y, s=piece: y[:, s], context)
            out, state = mixer.extend(x[:, piece], part, state)
            outs.append(out)
        return mixer(x, context), jnp.concatenate(outs, axis=1)

    want, want_in_parts = run(small.context(small_ids))
    np.testing.assert_allclose(want_in_parts, want, atol=1e-5)
    for got in run(small.context(huge)):
        np.testing.assert_allclose(got, want, atol=1e-5)
