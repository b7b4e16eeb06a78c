"""Published initialisations, and the declared costs of mixers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.models.accounting import layer_table, train_flops_per_token
from hybridlm.models.mixers import KINDS, LayerSpec, read_mixer
from hybridlm.models.mixers.attention import mean_keys
from hybridlm.models.norms import RMSNorm
from hybridlm.models.params import Model
from hybridlm.models.positional import Rope, RopeConfig

SPEC = LayerSpec(width=64, norm_eps=1e-6, out_scale=0.5)


def test_rglru_decays_start_between_0_9_and_0_999():
    """a = exp(-softplus(Lambda)); recurrentgemma draws a^2 uniformly."""
    mixer = read_mixer(dict(kind="rglru"), "m").build(LayerSpec(4096, 1e-6, 1.0), rngs=nnx.Rngs(0))
    a = np.exp(-np.logaddexp(0, np.asarray(mixer.decay[...], np.float64)))
    assert 0.9 - 1e-4 <= a.min() < 0.91
    assert 0.995 < a.max() <= 0.999 + 1e-4
    assert abs(np.mean(a**2) - (0.81 + 0.998001) / 2) < 0.01


def test_rglru_gates_start_unbiased():
    mixer = read_mixer(dict(kind="rglru"), "m").build(SPEC, rngs=nnx.Rngs(0))
    assert not np.any(mixer.recurrence_gate.bias[...])


def test_linear_maps_start_at_unit_gain_and_outputs_at_out_scale():
    mixer = read_mixer(dict(kind="attention", heads=4), "m").build(SPEC, rngs=nnx.Rngs(0))
    assert abs(float(jnp.std(mixer.q.kernel[...])) * 8 - 1) < 0.05
    assert abs(float(jnp.std(mixer.out.kernel[...])) * 8 - 0.5) < 0.03


@given(seq_len=st.integers(1, 60), window=st.none() | st.integers(1, 80))
def test_mean_keys_counts_the_mask(seq_len, window):
    t = np.arange(seq_len)
    seen = t[:, None] >= t[None, :]
    if window is not None:
        seen &= t[:, None] - t[None, :] < window
    assert mean_keys(seq_len, window) == pytest.approx(seen.sum() / seq_len)


def test_flops_are_those_of_the_matrices():
    """2 per kernel entry, plus the keys of attention and the recurrence."""
    config = small.model_config("swa full rec", depth=3)
    model, seq_len = Model.of(config), 64
    matmul = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.abstract["unit"]):
        if getattr(path[-1], "key", "") == "kernel":
            matmul += 2 * int(np.prod(leaf.shape))
    head = 2 * config.width * config.vocab_size
    keys = 4 * config.width * (mean_keys(seq_len, 5) + mean_keys(seq_len, None))
    recurrence = 2 * config.width
    expected = 3 * (matmul + head + keys + recurrence)
    assert train_flops_per_token(model, seq_len) == pytest.approx(expected)


@pytest.mark.parametrize("name", small.MIXERS)
def test_state_bytes_are_those_of_the_state(name):
    """The floating-point arrays of a state for n tokens have `state_bytes` bytes."""
    config = read_mixer(small.MIXERS[name], "m")
    mixer = config.build(LayerSpec(32, 1e-6, 1.0), rngs=nnx.Rngs(0))
    for length in (3, 50):
        state = mixer.init_state(1, length, jnp.bfloat16)
        floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert sum(x.nbytes for x in floats) == config.state_bytes(32, length)


@pytest.mark.parametrize("name", small.MIXERS)
def test_sizes_along_heads_are_multiples_of_a_head_count(name):
    """So sharding along "heads" and "kv_heads" can keep heads whole."""
    config = read_mixer(small.MIXERS[name], "m")
    mixer = nnx.eval_shape(lambda: config.build(LayerSpec(32, 1e-6, 1.0), rngs=nnx.Rngs(0)))
    counts = config.head_counts(32)
    for path, variable in nnx.to_flat_state(nnx.state(mixer)):
        for size, axis in zip(variable.shape, variable.get_metadata("axes"), strict=True):
            if axis in ("heads", "kv_heads"):
                whole = [setting for setting, count in counts.items() if size % count == 0]
                assert whole, f"{path}: {size} along {axis!r} is no multiple of {counts}"


def test_head_settings_name_settings():
    assert {small.MIXERS[name]["kind"] for name in small.MIXERS} == set(KINDS)
    for kind, config in KINDS.items():
        missing = set(config.head_settings) - {f.name for f in dataclasses.fields(config)}
        assert not missing, f"{kind} has no {missing}"


@pytest.mark.parametrize("name", ["swa", "full", "chunked", "mla", "moba", "nha", "nha_full"])
def test_more_tokens_than_the_state_holds_are_refused(name):
    """They would overwrite each other; the ring buffer of a full window takes any number."""
    mixer = read_mixer(small.MIXERS[name], "m").build(LayerSpec(32, 1e-6, 1.0), rngs=nnx.Rngs(0))
    context = small.context(np.ones((1, 9)))

    def extend(max_len):
        state = mixer.init_state(1, max_len, jnp.float32)
        return mixer.extend(jnp.zeros((1, 9, 32)), context, state)

    jax.eval_shape(lambda: extend(9))
    with pytest.raises(ValueError, match="9 tokens at once do not fit a state made for max_len 4"):
        jax.eval_shape(lambda: extend(4))
    if mixer.config.reach(100) < 9:
        jax.eval_shape(lambda: extend(mixer.config.reach(100)))


def test_the_layer_table_sums_to_the_parameters():
    config = small.model_config("swa full rec", depth=8, prefix="full", suffix="rec")
    model = Model.of(config)
    rows = layer_table(model, 32)
    assert [r.name for r in rows[1:-1]] == list(config.layout.names)
    assert sum(r.parameters for r in rows) == model.count()


def test_rope_depends_on_distance_alone():
    rope = Rope(RopeConfig(theta=100.0, fraction=0.5), 16)
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((1, 1, 1, 16)), jnp.float32) for _ in range(2))

    def score(i, j):
        rotated = rope(q, jnp.array([[i]])), rope(k, jnp.array([[j]]))
        return float(jnp.sum(rotated[0] * rotated[1]))

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3
    np.testing.assert_array_equal(rope(q, jnp.array([[7]]))[..., 8:], q[..., 8:])


def test_rmsnorm_has_unit_rms():
    x = jax.random.normal(jax.random.key(0), (2, 3, 64)) * 7
    y = RMSNorm(64, 1e-6)(x)
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(y**2, -1)), np.ones((2, 3)), rtol=1e-4)


@pytest.mark.parametrize("name", small.MIXERS)
def test_reach_is_a_number_of_tokens_or_none(name):
    """Attention reaches its window, chunk or the whole context; a recurrence has no reach."""
    config = read_mixer(small.MIXERS[name], "m")
    spans = {"swa": 5, "full": 50, "chunked": 6, "mla": 50, "moba": 50, "nha": 7, "nested": 50}
    recurrent = {
        "rglru",
        "mamba1",
        "mamba2",
        "mamba3",
        "gla",
        "hgrn2",
        "lightning",
        "deltanet",
        "gdn",
        "gdn2",
        "delta_product",
        "rwkv7",
        "kda",
        "mlstm",
    }
    reach = config.reach(50)
    if config.kind_name in recurrent | {"gsa", "short_conv"}:
        assert reach is None
    else:
        assert name == "nha0" or reach == spans.get(name, reach)
        assert (reach is None) == (name == "nha0")
