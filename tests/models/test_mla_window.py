"""Latent attention with a window."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from hybridlm.errors import ConfigError
from hybridlm.models.mixers import LayerSpec, SequenceContext, read_mixer
from hybridlm.models.mixers.spans import mean_keys

WIDTH, WINDOW = 32, 4
IDS = np.asarray([[1] * 9 + [2] * 6 + [0] * 2, [1] * 3 + [2] * 14])


def build(**changes):
    config = read_mixer(small.MIXERS["mla"] | changes, "m")
    return config, config.build(LayerSpec(WIDTH, 1e-6, 1.0), rngs=nnx.Rngs(0))


def drawn():
    x = np.random.default_rng(0).standard_normal((*IDS.shape, WIDTH))
    return jnp.asarray(x, jnp.float32), small.context(IDS)


def test_a_query_depends_on_the_last_tokens_of_its_document_alone():
    _, mixer = build(window=WINDOW)
    x, context = drawn()
    gradient = jax.jit(jax.jacrev(lambda x: mixer(x, context).sum(-1)))(x)
    depends = np.abs(np.asarray(gradient)).max(-1)  # (row, query, row, key)
    t = np.arange(IDS.shape[1])
    near = (t[None] <= t[:, None]) & (t[:, None] - t[None] < WINDOW)
    for row, ids in enumerate(IDS):
        seen = near & (ids[:, None] == ids[None])
        real = ids != 0
        np.testing.assert_array_equal(depends[row, :, row][real] > 0, seen[real])
        assert depends[row, :, 1 - row][real].max() == 0


def test_the_window_is_that_of_a_narrowed_mixer_and_bounds_the_cache():
    """Outputs equal those of full latent attention that is narrowed; decoding gives the same."""
    config, near = build(window=WINDOW)
    _, full = build()
    x, context = drawn()
    expected = near(x, context)
    np.testing.assert_array_equal(full.narrowed(WINDOW)(x, context), expected)
    state = near.init_state(2, IDS.shape[1], jnp.float32)
    assert state.entries[0].shape[1] == WINDOW == config.reach(100)
    found, start = [], 0
    for n in [5, 1, 1, 4, 1, 1, 1, 1, 1, 1]:
        piece = SequenceContext(*(a[:, start : start + n] for a in context[:2]))
        y, state = near.extend(x[:, start : start + n], piece, state)
        found.append(y)
        start += n
    there = IDS != 0
    np.testing.assert_allclose(
        np.concatenate(found, 1)[there], np.asarray(expected)[there], atol=2e-6
    )


def test_flops_count_the_keys_of_the_window():
    (near, _), (full, _) = build(window=WINDOW), build()
    keys = mean_keys(50, None) - mean_keys(50, WINDOW)
    attended = 2 * full.heads * (full.key_size + full.value_dim)
    fewer = full.flops_per_token(WIDTH, 50) - near.flops_per_token(WIDTH, 50)
    assert fewer == pytest.approx(attended * keys)
    assert "window 4" in near.mechanism and "window" not in full.mechanism


def test_chosen_tokens_have_no_window():
    with pytest.raises(ConfigError, match="m.window goes without chosen tokens: leave it out"):
        read_mixer(small.MIXERS["dsa"] | dict(window=4), "m")
