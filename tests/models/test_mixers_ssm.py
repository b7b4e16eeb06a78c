"""Mamba, Mamba-2 and mLSTM: published initialisations, equations token by token, and costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from hybridlm.errors import ConfigError
from hybridlm.models.mixers import LayerSpec, read_mixer
from hybridlm.models.mixers.mlstm import MLSTMState, _stabilized_gates
from hybridlm.settings.reader import Invalid
from kernels_pallas.gated_linear import empty_state

SPEC = LayerSpec(width=32, norm_eps=1e-6, out_scale=0.5)
WIDE = LayerSpec(width=4096, norm_eps=1e-6, out_scale=0.5)


def build(kind, spec=SPEC, **settings):
    config = read_mixer(dict(kind=kind, **settings), "m")
    config.check_width(spec.width)
    return config, config.build(spec, rngs=nnx.Rngs(0))


def perturbed(mixer, seed=0):
    """The module with perturbed parameters, and the same parameters as float64 numpy arrays."""
    rng = np.random.default_rng(seed)
    state = jax.tree.map(
        lambda p: p + 0.3 * jnp.asarray(rng.standard_normal(p.shape), p.dtype), nnx.state(mixer)
    )
    nnx.update(mixer, state)
    return jax.tree.map(lambda p: np.asarray(p, np.float64), nnx.to_pure_dict(state))


def one_document(time, seed=1):
    x = jax.random.normal(jax.random.key(seed), (1, time, SPEC.width))
    return x, small.context(np.ones((1, time), int)), np.asarray(x[0], np.float64)


def silu(x):
    return x / (1 + np.exp(-x))


def conv(x, kernel, bias):
    shifted = [np.concatenate([np.zeros((i, x.shape[1])), x[: len(x) - i]]) for i in range(4)]
    return bias + sum(s * k for s, k in zip(shifted, kernel))


def test_mamba1_initial_values():
    """A = -1, ..., -N in each channel, dt log-uniform in [1e-3, 0.1], its map uniform, D 1."""
    _, mixer = build("mamba1", inner=4096, dt_rank=256, state_dim=4)
    a = np.exp(np.asarray(mixer.log_a[...], np.float64))
    np.testing.assert_allclose(a, np.broadcast_to(np.arange(1, 5), (4096, 4)), rtol=1e-6)
    dt = np.logaddexp(0, np.asarray(mixer.dt_bias[...], np.float64))
    assert 1e-3 * 0.999 <= dt.min() < 1.1e-3 and 0.09 < dt.max() <= 0.1 * 1.001
    assert abs(np.log(dt).mean() - np.log(1e-2)) < 0.1
    up = np.asarray(mixer.dt_up.kernel[...]) * 256**0.5
    assert up.shape == (256, 4096) and np.abs(up).max() <= 1 and abs(up.std() - 3**-0.5) < 0.01
    assert np.all(mixer.skip[...] == 1) and not np.any(mixer.conv.bias[...])


@pytest.mark.parametrize(
    "norm", ["rmsnorm", *(pytest.param(n, marks=pytest.mark.slow) for n in ("none", "unscaled"))]
)
def test_mamba1_equals_its_recurrence(norm):
    """Algorithm 2 of the paper, in numpy loops over tokens."""
    settings = dict(inner=6, state_dim=5, dt_rank=3, norm_eps=0.1)
    _, mixer = build("mamba1", norm=norm, **settings)
    p = perturbed(mixer)
    x, context, xs = one_document(11)

    def normed(y, name):
        if norm == "none":
            return y
        y = y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + 0.1)
        return y * p[name]["scale"] if norm == "rmsnorm" else y

    u = silu(conv(xs @ p["value"]["kernel"], **p["conv"]))
    B, C = np.split(u @ p["shared"]["kernel"], 2, axis=1)
    B, C = normed(B, "b_norm"), normed(C, "c_norm")
    low = normed(u @ p["dt_down"]["kernel"], "dt_norm")
    dt = np.logaddexp(0, low @ p["dt_up"]["kernel"] + p["dt_bias"])
    h, rows = np.zeros((6, 5)), []
    for t in range(11):
        h = np.exp(-np.exp(p["log_a"]) * dt[t][:, None]) * h + np.outer(dt[t] * u[t], B[t])
        rows.append(h @ C[t] + p["skip"] * u[t])
    want = (np.stack(rows) * silu(xs @ p["gate"]["kernel"])) @ p["out"]["kernel"]
    got = jax.jit(lambda x: mixer(x, context))(x)
    np.testing.assert_allclose(got[0], want, atol=1e-4 * np.abs(want).max())


def test_mamba2_initial_values():
    """A uniform in [1, 16], dt log-uniform in [1e-3, 0.1], D 1, biases of convolutions 0."""
    _, mixer = build("mamba2", WIDE, head_dim=2, state_dim=4)
    a = np.exp(np.asarray(mixer.log_a[...], np.float64))
    assert a.shape == (4096,)
    assert 1 <= a.min() < 1.1 and 15.9 < a.max() <= 16 and abs(a.mean() - 8.5) < 0.2
    dt = np.logaddexp(0, np.asarray(mixer.dt_bias[...], np.float64))
    assert 1e-3 * 0.999 <= dt.min() < 1.1e-3 and 0.09 < dt.max() <= 0.1 * 1.001
    assert abs(np.log(dt).mean() - np.log(1e-2)) < 0.1
    assert np.all(mixer.skip[...] == 1) and np.all(mixer.norm.norm.scale[...] == 1)
    assert not np.any(mixer.conv.bias[...]) and not np.any(mixer.shared_conv.bias[...])


@pytest.mark.parametrize("norm", ["after_gate", "before_gate", "none"])
def test_mamba2_equals_its_recurrence(norm):
    """The paper's equations, in numpy loops over tokens, heads and groups."""
    settings = dict(heads=4, head_dim=6, state_dim=5, groups=2, dt_limits=[0.05, 1.0])
    _, mixer = build("mamba2", norm=norm, **settings)
    p = perturbed(mixer)
    x, context, xs = one_document(11)
    z = xs @ p["gate"]["kernel"]
    u = silu(conv(xs @ p["value"]["kernel"], **p["conv"])).reshape(11, 4, 6)
    bc = silu(conv(xs @ p["shared"]["kernel"], **p["shared_conv"])).reshape(11, 4, 5)
    dt = np.clip(np.logaddexp(0, xs @ p["dt"]["kernel"] + p["dt_bias"]), 0.05, 1.0)
    h, rows = np.zeros((4, 5, 6)), []
    for t in range(11):
        B, C = np.repeat(bc[t, :2], 2, axis=0), np.repeat(bc[t, 2:], 2, axis=0)
        decay = np.exp(-np.exp(p["log_a"]) * dt[t])
        h = decay[:, None, None] * h + dt[t][:, None, None] * B[:, :, None] * u[t][:, None]
        rows.append(np.einsum("hkv,hk->hv", h, C) + p["skip"][:, None] * u[t])
    y = np.stack(rows).reshape(11, 24)

    def normed(y):
        parts = y.reshape(11, 2, 12)
        parts = parts / np.sqrt(np.mean(parts**2, axis=-1, keepdims=True) + 1e-6)
        return parts.reshape(11, 24) * p["norm"]["norm"]["scale"]

    gated = {
        "after_gate": lambda: normed(y * silu(z)),
        "before_gate": lambda: normed(y) * silu(z),
        "none": lambda: y * silu(z),
    }[norm]()
    want = gated @ p["out"]["kernel"]
    np.testing.assert_allclose(mixer(x, context)[0], want, atol=1e-4 * np.abs(want).max())


def test_mlstm_initial_values():
    """Gates start independent of the input: biases are -10 (input) and 3 to 6 (forget)."""
    _, mixer = build("mlstm", heads=4)
    assert not np.any(mixer.input_gate.proj.kernel[...])
    assert not np.any(mixer.forget_gate.proj.kernel[...])
    np.testing.assert_array_equal(mixer.input_gate.bias[...], np.full(4, -10.0))
    np.testing.assert_allclose(mixer.forget_gate.bias[...], [3, 4, 5, 6], rtol=1e-6)
    assert np.all(mixer.norm.scale[...] == 1)


def test_mlstm_equals_its_recurrence():
    """C, n and the denominator max(|n q|, 1) in float64, without stabilisation."""
    _, mixer = build("mlstm", heads=2)
    p = perturbed(mixer)
    p["input_gate"]["bias"] += 9.0  # so that both arguments of the max occur
    nnx.update(
        mixer,
        nnx.State({"input_gate": {"bias": jnp.asarray(p["input_gate"]["bias"], jnp.float32)}}),
    )
    x, context, xs = one_document(12)

    def heads(name):
        return (xs @ p[name]["kernel"]).reshape(12, 2, -1)

    def gate(name):
        return 15 * np.tanh((xs @ p[name]["proj"]["kernel"] + p[name]["bias"]) / 15)

    q, k, v = heads("q") * 8**-0.5, heads("k"), heads("v")
    i, f = np.exp(gate("input_gate")), 1 / (1 + np.exp(-gate("forget_gate")))
    C, n, rows, floors = np.zeros((2, 8, 16)), np.zeros((2, 8)), [], 0
    for t in range(12):
        C = f[t][:, None, None] * C + i[t][:, None, None] * k[t][:, :, None] * v[t][:, None]
        n = f[t][:, None] * n + i[t][:, None] * k[t]
        nq = np.abs(np.sum(n * q[t], axis=-1))
        floors += int(np.sum(nq < 1))
        rows.append(np.einsum("hkv,hk->hv", C, q[t]) / np.maximum(nq, 1)[:, None])
    assert 0 < floors < 24
    h = np.stack(rows)
    h = h - h.mean(axis=-1, keepdims=True)
    h = h / np.sqrt(np.mean(h**2, axis=-1, keepdims=True) + 1e-6) * p["norm"]["scale"]
    gated = h.reshape(12, 32) / (1 + np.exp(-(xs @ p["output_gate"]["kernel"])))
    want = gated @ p["out"]["kernel"]
    np.testing.assert_allclose(mixer(x, context)[0], want, atol=1e-4 * np.abs(want).max())


def test_stabilizer_is_the_running_maximum():
    """m_t = max(log f_t + m_{t-1}, i_t) token by token, from 0 at each document and padding."""
    rng = np.random.default_rng(0)
    ids = small.random_segments(rng, 3, 40).astype(np.int32)
    i, f = rng.standard_normal((2, 3, 40, 2)) * 4
    with jax.enable_x64(True):
        state = MLSTMState(empty_state(3, 2, 1, 1, jnp.float64), jnp.full((3, 2), 7.0))
        state = state._replace(memory=state.memory._replace(segment_ids_B=jnp.asarray([1, 2, 0])))
        gates = _stabilized_gates(jnp.asarray(i), jnp.asarray(f), small.context(ids), state)
        write, log_decay, got = map(np.asarray, gates)
    want, before, last = np.zeros_like(i), np.full((3, 2), 7.0), np.array([1, 2, 0])
    for t in range(40):
        before = np.where((ids[:, t] == last)[:, None], before, 0)
        log_f = -np.logaddexp(0, -f[:, t])
        now = np.where((ids[:, t] > 0)[:, None], np.maximum(log_f + before, i[:, t]), 0)
        want[:, t], before, last = now, now, ids[:, t]
    np.testing.assert_allclose(got, want, atol=1e-12)
    assert np.max(write) <= 1 and np.max(log_decay) <= 1e-12


@pytest.mark.parametrize("input_bias", [0.0, 10.0])
def test_mlstm_float32_gradients_are_as_exact_as_the_inputs_allow(x64, input_bias):
    """float32 against float64: errors are below 1e-5 of the largest entry, or below 8 times the change
    that inputs and parameters off by 2^-24 make.

    The gates' biases are left out: theirs are sums over tokens that cancel. A factor common to all
    exp(i_t) divides out of C q / (n . q), so with wide-open input gates the sum is a hundredth of its
    terms or less. These biases err at most by 5e-6 of the sum of the terms' sizes.
    """
    _, mixer = build("mlstm", heads=2)
    graphdef, state = nnx.split(mixer)
    gates = "input_gate", "forget_gate"

    def gradients(params, x, d_y, added):
        """To the parameters, the input, and what is added to each token's gates."""

        def loss(params, x, added):
            values = jax.tree.map(lambda leaf: leaf, state)
            nnx.replace_by_pure_dict(values, params)
            module = nnx.merge(graphdef, values)
            for name in gates:
                gate = getattr(module, name)
                setattr(module, name, lambda x, gate=gate, name=name: gate(x) + added[name])
            return jnp.sum(module(x, small.context(np.ones(x.shape[:2], int))) * d_y)

        return jax.grad(loss, (0, 1, 2))(params, x, added)

    run = jax.jit(gradients)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        params = jax.tree.map(
            lambda p: np.float32(p + 0.1 * rng.standard_normal(p.shape)),  # noqa: B023 - called here
            nnx.to_pure_dict(state),
        )
        params["input_gate"]["bias"] = np.float32(input_bias + 0.1 * rng.standard_normal(2))
        x, d_y = rng.standard_normal((2, 2, 64, SPEC.width)).astype(np.float32)
        inputs = params, x, d_y, {name: np.zeros((2, 64, 2), np.float32) for name in gates}
        exact_inputs = jax.tree.map(np.float64, inputs)
        nearby = [
            jax.tree.map(lambda a: a * (1 + 2.0**-24 * rng.uniform(-1, 1, a.shape)), exact_inputs)  # noqa: B023
            for _ in range(3)
        ]
        exact, *changed, got = map(_by_path, [run(*i) for i in (exact_inputs, *nearby, inputs)])
        for path, right in exact.items():
            error = np.abs(got[path] - right).max()
            if path.endswith("gate/bias"):
                terms = np.abs(exact[f"2/{path.split('/')[1]}"]).sum(axis=(0, 1))
                assert error <= 5e-6 * terms.max(), path
                if input_bias and "input" in path:
                    assert np.abs(right).max() < 1e-2 * terms.max()
            else:
                change = max(np.abs(near[path] - right).max() for near in changed)
                assert error <= max(1e-5 * np.abs(right).max(), 8 * change), path


def _by_path(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, np.float64)
        for path, leaf in leaves
    }


@pytest.mark.parametrize(
    "name", ["s6", "s6_jamba", "s6_falcon", "ssd", "ssd_groups", "ssd_falcon", "mlstm", "mlstm_odd"]
)
def test_flops_are_those_of_kernels_and_states(name):
    """Kernels and convolutions once per token; each state entry is written and read once."""
    config = read_mixer(small.MIXERS[name], "m")
    mixer = config.build(SPEC, rngs=nnx.Rngs(0))
    flat = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(mixer)))
    kernels = sum(2 * x.size for path, x in flat if path[-1].key == "kernel")
    memory = mixer.init_state(1, 9, jnp.float32).memory
    memory = 4 * sum(x.size for x in memory if jnp.issubdtype(x.dtype, jnp.floating))
    skip = 0 if name.startswith("mlstm") else 2 * mixer.skip[...].size
    skip *= config.head_dim if name.startswith("ssd") else 1
    assert config.flops_per_token(32, 77) == kernels + memory + skip


BAD = {
    "head_dim": (dict(kind="mamba2", head_dim=48), "head_dim is 48 and does not divide the inner"),
    "groups": (dict(kind="mamba2", head_dim=16, groups=3), "groups is 3 and does not divide the 4"),
    "groups of heads": (dict(kind="mamba2", heads=4, groups=3), "groups is 3 and does not divide"),
    "no heads": (dict(kind="mamba2", heads=0), "heads must be at least 1, or None, not 0"),
    "state_dim": (dict(kind="mamba2", state_dim=0), "state_dim must be at least 1, not 0"),
    "norm": (dict(kind="mamba2", norm="gate"), "norm is 'gate' (str): valid are: "),
    "limits": (
        dict(kind="mamba2", dt_limits=[0.5, 0.1]),
        "dt_limits must be one or two numbers, 0 <=",
    ),
    "conv": (dict(kind="mamba2", conv_width=9), "conv_width must lie in 1 to 8, not 9"),
    "heads": (dict(kind="mlstm", heads=5), "qk_dim_factor times width 32 is 16, which heads 5 do"),
    "small": (
        dict(kind="mlstm", qk_dim_factor=0.01),
        "qk_dim_factor times width 32 is 0.32, which",
    ),
    "factor": (dict(kind="mlstm", v_dim_factor=0), "v_dim_factor must be positive, not 0"),
    "cap": (dict(kind="mlstm", gate_soft_cap=90), "gate_soft_cap must lie in (0, 80], not 90"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings(case):
    settings, sentence = BAD[case]
    with pytest.raises((ConfigError, Invalid)) as error:
        read_mixer(settings, "m").check_width(32)
    field = f"{error.value.field} " if isinstance(error.value, Invalid) else ""
    assert sentence in field + str(error.value)


def test_factors_are_not_rounded_down():
    """0.29 * 100 is 29, although the float product is below 29."""
    config = read_mixer(dict(kind="mlstm", heads=1, qk_dim_factor=0.29, v_dim_factor=1.1), "m")
    config.check_width(100)
    assert config.head_sizes(100) == (29, 110)
