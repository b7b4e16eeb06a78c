"""LFM2's short convolution: its equation and its costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from hybridlm.errors import ConfigError
from hybridlm.models.mixers import LayerSpec, read_mixer

SPEC = LayerSpec(width=16, norm_eps=1e-6, out_scale=0.5)


def build(**settings):
    config = read_mixer(dict(kind="short_conv", **settings), "m")
    return config, config.build(SPEC, rngs=nnx.Rngs(0))


def test_it_computes_its_equation():
    """out(C * conv(B * x)), written out over the taps with numpy."""
    _, mixer = build()
    x = np.asarray(jax.random.normal(jax.random.key(1), (1, 9, 16)), np.float64)
    B, C, value, out = (
        np.asarray(m.kernel[...], np.float64)
        for m in (mixer.input_gate, mixer.output_gate, mixer.value, mixer.out)
    )
    taps = np.asarray(mixer.conv.kernel[...], np.float64)
    gated = (x @ B) * (x @ value)
    conv = sum(
        np.concatenate([np.zeros((1, i, 16)), gated[:, : 9 - i]], axis=1) * taps[i]
        for i in range(3)
    )
    want = ((x @ C) * conv) @ out
    context = small.context(np.ones((1, 9), int))
    np.testing.assert_allclose(mixer(jnp.asarray(x, jnp.float32), context), want, atol=1e-5)


def test_flops_are_those_of_the_parameters():
    """Each parameter is multiplied and added once per token."""
    config, mixer = build(conv_width=4)
    parameters = sum(x.size for x in jax.tree.leaves(nnx.state(mixer)))
    assert config.flops_per_token(16, 99) == 2 * parameters


@pytest.mark.parametrize("width", [0, 9])
def test_width_is_bounded(width):
    with pytest.raises(ConfigError, match=f"m.conv_width must lie in 1 to 8, not {width}"):
        build(conv_width=width)
