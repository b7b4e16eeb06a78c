"""Equalities and costs of mixture of block attention; test_mixer_laws.py tests the laws."""

import jax
import numpy as np
import pytest
import small
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from hybridlm.errors import ConfigError
from hybridlm.models.mixers import LayerSpec, read_mixer
from hybridlm.models.mixers.moba import seen

WIDTH = 32


def build(**settings):
    config = read_mixer(settings, "m")
    config.check_width(WIDTH)
    return config, config.build(LayerSpec(WIDTH, 1e-6, 1.0), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("blocks, same", [(dict(top_k=9), dict()), (dict(top_k=1), dict(chunk=4))])
def test_limiting_cases_are_full_and_chunked_attention(blocks, same):
    """The same seed draws the same parameters for all three mixers."""
    _, sparse = build(kind="moba", heads=4, kv_heads=2, block=4, **blocks)
    _, dense = build(kind="attention", heads=4, kv_heads=2, **same)
    context = small.context(np.array([[1] * 5 + [2] * 13 + [0] * 2]))
    x = jax.random.normal(jax.random.key(0), (1, 20, WIDTH))
    np.testing.assert_allclose(sparse(x, context), dense(x, context), atol=1e-6)


@given(seq_len=st.integers(1, 60), block=st.integers(1, 20), top_k=st.integers(1, 5))
def test_seen_counts_the_mask(seq_len, block, top_k):
    own = np.arange(seq_len) // block
    keys = np.arange(seq_len) % block + 1 + block * np.minimum(own, top_k - 1)
    means = own * (top_k > 1)
    assert seen(seq_len, block, top_k) == pytest.approx((keys.mean(), means.mean()))


def test_flops_are_those_of_the_matrices_and_what_is_seen():
    config, mixer = build(kind="moba", heads=4, kv_heads=2, block=3, top_k=2)
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(mixer)))
    matrices = sum(2 * x.size for path, x in leaves if path[-1].key == "kernel")
    keys, means = seen(33, 3, 2)
    want = matrices + WIDTH * (4 * keys + 2 * means)
    assert config.flops_per_token(WIDTH, 33) == pytest.approx(want)


def test_bad_settings_are_refused():
    for change, sentence in (
        (dict(block=0), "m.block must be at least 1, not 0"),
        (dict(block=2**31), r"m.block must be below 2\^31"),
        (dict(top_k=0), "m.top_k must be at least 1, not 0"),
        (dict(kv_heads=3), "m.kv_heads is 3 and does not divide heads 4"),
        (dict(head_dim=0), "m.head_dim must be at least 1, or None, not 0"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            build(**(dict(kind="moba", heads=4) | change))
