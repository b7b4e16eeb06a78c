"""Gated slot attention and Native Hybrid Attention equal plain loops over their equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from hybridlm.errors import ConfigError
from hybridlm.models.mixers import LayerSpec, read_mixer
from hybridlm.models.mixers.nha import NEGATIVE, merge
from hybridlm.models.params import Model
from kernels_pallas import dispatch

WIDTH, TIME = 16, 23
IDS = np.asarray([[1] * 11 + [2] * 2 + [1] * 8 + [0] * 2, [0] + [3] * 21 + [4]])


def built(kind="nha", seed=0, **settings):
    """A float64 mixer whose parameters have no special values."""
    config = read_mixer(dict(kind=kind, **settings), "m")
    module = config.build(LayerSpec(WIDTH, 1e-6, 1.0), rngs=nnx.Rngs(seed))
    graphdef, state = nnx.split(module)
    rng = np.random.default_rng(seed)
    state = jax.tree.map(lambda p: jnp.asarray(p + rng.standard_normal(p.shape) * 0.3), state)
    return nnx.merge(graphdef, state)


def silu(x):
    return x / (1 + np.exp(-x))


def rotate(x, position, theta):
    half = x.shape[-1] // 2
    # The mixer's angles are float32, as RoPE's are everywhere in the project.
    frequency = np.float32(theta) ** -(np.arange(half, dtype=np.float32) / np.float32(half))
    angle = (np.float32(position) * frequency).astype(np.float32)
    cos, sin = np.cos(angle).astype(np.float64), np.sin(angle).astype(np.float64)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def plain_nha(module, x, ids, positions):
    """The paper's equations, one query at a time, dense, in float64: (y, slot share)."""
    config, size = module.config, module.size
    heads, kv_heads, slots = config.heads, config.kv_heads, config.slots
    weights = {
        n: np.asarray(getattr(module, n).kernel[...]) for n in ("q", "k", "v", "gate", "out")
    }
    window = np.inf if config.window is None else config.window
    phi = silu if config.swish_qk else (lambda a: a)
    scale = size**-0.5 if config.scale is None else config.scale
    theta = config.rope.theta
    shape = (*x.shape[:2], -1, size)
    q, k, v = ((x @ weights[n]).reshape(shape) for n in ("q", "k", "v"))
    v = silu(v) if config.swish_v else v
    gate = 1 / (1 + np.exp(-(x @ weights["gate"]).reshape(*x.shape[:2], kv_heads, slots)))
    gate = gate ** (1 / config.gate_normalizer)
    y, share = np.zeros((*x.shape[:2], heads, size)), np.zeros((*x.shape[:2], heads))
    for b in range(x.shape[0]):
        start = 0
        for t in range(x.shape[1]):
            if t and ids[b, t] != ids[b, t - 1]:
                start = t
            if not ids[b, t]:
                continue
            left = [u for u in range(start, t + 1) if u <= t - window]
            inside = [s for s in range(start, t + 1) if s > t - window]
            for h in range(heads):
                g = h // (heads // kv_heads)
                slot_k, slot_v = np.zeros((slots, size)), np.zeros((slots, size))
                for u in left:
                    a = gate[b, u, g][:, None]
                    slot_k = a * slot_k + (1 - a) * phi(k[b, u, g])[None]
                    slot_v = a * slot_v + (1 - a) * v[b, u, g][None]
                keys = [rotate(k[b, s, g], positions[b, s], theta) for s in inside]
                query = rotate(q[b, t, h], positions[b, t], theta)
                logits = [scale * np.dot(query, key) for key in keys]
                values = [v[b, s, g] for s in inside]
                counted = slots if left or config.empty_slots == "null" else 0
                logits = [scale * np.dot(phi(q[b, t, h]), m) for m in slot_k[:counted]] + logits
                if not logits:
                    continue
                p = np.exp(np.asarray(logits) - max(logits))
                p /= p.sum()
                y[b, t, h] = p @ np.asarray(list(slot_v[:counted]) + values)
                share[b, t, h] = p[:counted].sum()
    y = y.reshape(*x.shape[:2], -1)
    if config.output_norm:
        y = silu(y)
        y = y / np.sqrt(np.mean(y**2, -1, keepdims=True) + 1e-6)
        y = y * np.asarray(module.out_norm.norm.scale[...])
    return y @ weights["out"], share


SCRATCH = dict(heads=4, kv_heads=2, slots=3)
HYBRIDISED = dict(
    heads=2,
    kv_heads=1,
    slots=5,
    head_dim=6,
    swish_qk=False,
    swish_v=False,
    output_norm=False,
    scale=None,
    gate_normalizer=2.0,
    rope=dict(theta=100.0),
)


@pytest.mark.parametrize("empty_slots", ["null", "masked"])
@pytest.mark.parametrize(
    "window",
    [0, 4, TIME - 1, None, *(pytest.param(w, marks=pytest.mark.slow) for w in (1, TIME, 40))],
)
@pytest.mark.parametrize("form", [SCRATCH, HYBRIDISED], ids=["scratch", "hybridised"])
def test_nha_equals_its_equations(form, window, empty_slots):
    """Outputs and slot shares, for packed documents, grouped heads and every kind of window."""
    with jax.enable_x64(True):
        module = built(**form, window=window, empty_slots=empty_slots)
        x = np.random.default_rng(1).standard_normal((2, TIME, WIDTH))
        context = small.context(IDS)
        want, want_share = plain_nha(module, x, IDS, context.positions_BT)
        real = (IDS != 0)[..., None]
        with dispatch.auto_means("reference"):  # chunked = reference is an op's law
            got = np.where(real, module(jnp.asarray(x), context), 0)
            share = module.slot_share(jnp.asarray(x), context)
        assert np.max(np.abs(got - np.where(real, want, 0))) < 1e-6
        assert np.max(np.abs(share - want_share)) < 1e-6


def test_window_0_equals_gated_slot_attention():
    """With the same parameters, the bits are the same."""
    with jax.enable_x64(True):
        nha, gsa = built(**SCRATCH, window=0), built("gsa", **SCRATCH)
        nnx.update(gsa, nnx.state(nha))
        x = jnp.asarray(np.random.default_rng(2).standard_normal((2, TIME, WIDTH)))
        context = small.context(IDS)
        np.testing.assert_array_equal(nha(x, context), gsa(x, context))


@pytest.mark.parametrize("empty_slots, nulls", [("null", 5), ("masked", 0)])
def test_an_unlimited_window_is_attention_with_null_entries(empty_slots, nulls):
    """The result equals a dense softmax whose denominator has exp(0) once for each slot."""
    with jax.enable_x64(True):
        module = built(**HYBRIDISED, window=TIME, empty_slots=empty_slots)
        x = jnp.asarray(np.random.default_rng(3).standard_normal((1, TIME, WIDTH)))
        context = small.context(np.ones((1, TIME), int))
        q, k, v, _ = module._project(x, context)
        q, k = (module.rope(z, context.positions_BT) for z in (q, k))
        logits = jnp.einsum("bthk,bsk->bhts", q, k[:, :, 0]) * module.scale
        seen = jnp.tril(jnp.ones((TIME, TIME), bool))[None, None]
        weights = jnp.where(seen, jnp.exp(logits), 0)
        weights /= weights.sum(-1, keepdims=True) + nulls
        want = module.out(jnp.einsum("bhts,bsk->bthk", weights, v[:, :, 0]).reshape(1, TIME, -1))
        np.testing.assert_allclose(module(x, context), want, atol=1e-12)


@pytest.mark.parametrize("window", [0, 1, 5, 40, None])
def test_decoding_equals_the_parallel_form(window):
    """Token by token over documents, from an empty state."""
    with jax.enable_x64(True):
        module = built(**SCRATCH, window=window)
        x = jnp.asarray(np.random.default_rng(4).standard_normal((2, TIME, WIDTH)))
        context = small.context(IDS)
        state, outs = module.init_state(2, TIME, jnp.float64), []
        step = jax.jit(lambda x, context, state: module.extend(x, context, state))
        for t in range(TIME):
            here = jax.tree.map(lambda a, t=t: jnp.asarray(a[:, t : t + 1]), context)
            out, state = step(x[:, t : t + 1], here, state)
            outs.append(out)
        real = (IDS != 0)[..., None]
        got = np.where(real, jnp.concatenate(outs, axis=1), 0)
        np.testing.assert_allclose(got, np.where(real, module(x, context), 0), atol=1e-11)


def test_merge_with_an_empty_side():
    """The result is the other side, or 0 if both are empty; an empty side has gradient 0."""
    rng = np.random.default_rng(5)
    a, b = (jnp.asarray(rng.standard_normal((1, 3, 1, 4)), jnp.float32) for _ in range(2))
    lse = jnp.asarray([[[0.3], [NEGATIVE], [NEGATIVE]]], jnp.float32)
    other = jnp.asarray([[[NEGATIVE], [0.1], [NEGATIVE]]], jnp.float32)
    a, b = a * (lse > NEGATIVE)[..., None], b * (other > NEGATIVE)[..., None]
    np.testing.assert_array_equal(
        merge((a, lse), (b, other)), jnp.concatenate([a[:, :1], b[:, 1:2], a[:, 2:] * 0], axis=1)
    )
    grads = jax.grad(lambda *z: jnp.sum(merge(z[:2], z[2:]) ** 2), (0, 1, 2, 3))(a, lse, b, other)
    assert all(np.all(np.isfinite(g)) for g in grads)
    np.testing.assert_array_equal(grads[1], 0)
    np.testing.assert_array_equal(grads[3], 0)


def test_slot_usage_loss_is_cross_entropy_of_the_share():
    """-(y log share + (1 - y) log(1 - share)), weighted, averaged over tokens without padding."""
    with jax.enable_x64(True):
        module = built(**SCRATCH, window=4, slot_usage_weight=0.3, slot_usage_target=0.2)
        # Small inputs, so that 1 - share is not rounded to 0.
        x = 0.1 * jnp.asarray(np.random.default_rng(6).standard_normal((2, TIME, WIDTH)))
        context = small.context(IDS)
        y, loss = module.with_loss(x, context)
        np.testing.assert_array_equal(y, module(x, context))
        share = np.asarray(module.slot_share(x, context))[IDS != 0]
        want = -np.mean(0.2 * np.log(share) + 0.8 * np.log1p(-share))
        assert float(loss) == pytest.approx(0.3 * want, rel=1e-12)


def test_slot_usage_loss_skips_queries_without_slots_or_window():
    """With masked empty slots, a document shorter than the window has no slot share."""
    module = built(**SCRATCH, window=8, slot_usage_weight=1.0, empty_slots="masked")
    x = jnp.asarray(np.random.default_rng(7).standard_normal((1, 8, WIDTH)), jnp.float32)
    context = small.context(np.ones((1, 8), int))
    loss, grads = nnx.value_and_grad(lambda m: m.with_loss(x, context)[1])(module)
    assert float(loss) == 0
    assert all(not np.any(g) for g in jax.tree.leaves(grads))


def test_the_model_sums_the_losses_of_all_layers():
    """In prefix, scanned unit and suffix; hidden states are those of `hidden`."""
    settings = dict(pattern="nha_llm swa", depth=6, prefix="nha_llm", suffix="swa")
    model, params = small.make(small.model_config(**settings))
    tokens = jnp.asarray(np.random.default_rng(8).integers(0, 40, (2, 12)))
    context = small.context(np.ones((2, 12), int))
    module = model.bind(params)
    hidden, loss = module.hidden_and_loss(tokens, context)
    np.testing.assert_array_equal(hidden, module.hidden(tokens, context))
    unrolled = module.hidden_and_loss(tokens, context, scan=False)[1]
    x, total = module.embed(tokens, jnp.float32), 0
    for name, layer in module.blocks():
        x, one = layer.with_loss(x, context)
        assert (float(one) > 0) == (name == "nha_llm")
        total += float(one)
    assert float(loss) == pytest.approx(total, rel=1e-5)
    assert float(unrolled) == pytest.approx(total, rel=1e-5)


def test_gates_start_with_unit_gain_and_no_bias():
    """log a = logsigmoid(W_f x) / 8: a starts around sigmoid(0)^(1/8) = 0.917."""
    config = read_mixer(dict(kind="nha", heads=4, kv_heads=2, slots=32), "m")
    module = config.build(LayerSpec(256, 1e-6, 0.5), rngs=nnx.Rngs(0))
    assert module.gate.kernel[...].shape == (256, 2 * 32)
    assert abs(float(jnp.std(module.gate.kernel[...])) * 16 - 1) < 0.05
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 64, 256)), jnp.float32)
    gate = jnp.exp(module._project(x, small.context(np.ones((1, 64), int)))[3])
    assert float(jnp.median(gate)) == pytest.approx(0.5**0.125, abs=0.01)


@pytest.mark.parametrize("name", ["gsa", "nha", "nha0", "nha_full", "nha_llm"])
def test_flops_are_those_of_the_matrices(name):
    """Parameters times 2, the keys of the window, and slots read by every query head and updated
    by every key/value head, keys and values."""
    config = read_mixer(small.MIXERS[name], name)
    model = Model.of(small.model_config(name))
    layer = next(iter(model.abstract["unit"].values()))["mixer"]
    leaves = jax.tree_util.tree_leaves_with_path(layer)
    matrices = sum(2 * int(np.prod(p.shape)) for path, p in leaves if path[-1].key == "kernel")
    window, seq_len = getattr(config, "window", 0), 64
    keys = np.mean([min(t, seq_len if window is None else window) for t in range(1, seq_len + 1)])
    size = config.head_size(32)
    entries = keys * config.heads
    if window is not None:
        entries += config.slots * (config.heads + config.kv_heads)
    assert config.flops_per_token(32, seq_len) == pytest.approx(matrices + 4 * size * entries)


def test_an_unlimited_window_costs_as_much_as_full_attention():
    """Slots that are never written are not read."""

    def flops(window, seq_len):
        config = read_mixer(dict(kind="nha", heads=2, slots=3, window=window), "m")
        return config.flops_per_token(32, seq_len)

    assert flops(64, 64) == flops(100, 64) == flops(None, 64)
    assert flops(64, 65) > flops(64, 64) + 4 * 3 * 32


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(window=-1), "window must be at least 0"),
        (dict(window=2**31 + 1), r"window must be below 2\^31"),
        (dict(heads=4, kv_heads=3), "kv_heads is 3 and does not divide heads 4"),
        (dict(slots=0), "slots must be at least 1"),
        (dict(head_dim=5), "rope rotates 5 of 5"),
        (dict(window=0, slot_usage_weight=0.1), "slot_usage_weight weighs slots against a window"),
        (dict(slot_usage_target=1.0), r"slot_usage_target must lie in \(0, 1\), not 1.0"),
        (dict(empty_slots="none"), "empty_slots is 'none'"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ConfigError, match=message):
        read_mixer(dict(kind="nha", **settings), "m")
