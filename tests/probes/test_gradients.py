"""Gradient influence equals finite differences in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import small

from hybridlm import probes
from hybridlm.models.params import Model
from hybridlm.probes import Prompts

TIME = 30
IDS = np.asarray([[1] * 5 + [2] * 25, [1] * 9 + [0] * 21], np.int32)
PLACES = [(0, 29), (0, 28), (0, 12), (0, 5), (1, 8), (1, 0)]


def test_influence_is_the_derivative_of_the_summed_logits():
    """The model has a soft-capped head, a scaled embedding, a window and a recurrence."""
    with jax.enable_x64(True):
        config = small.model_config(
            "swa rec", logit_soft_cap=3.0, embedding_scale=2.0, tie_embeddings=False
        )
        model, rng = Model.of(config), np.random.default_rng(0)
        params = jax.tree.map(lambda p: 0.5 * rng.standard_normal(p.shape), model.abstract)
        tokens = rng.integers(0, 40, IDS.shape).astype(np.int32)
        context = small.context(IDS)
        none = np.full((2, 1), -1, np.int32)
        made = Prompts(tokens, IDS, context.positions_BT, none, np.zeros(IDS.shape, bool))
        norms, distance = probes.influence_norms(model, params, made, dtype=jnp.float64)

        last = [np.arange(10, 30), np.arange(9)]  # the last 20 of 25, and all of 9

        @jax.jit
        def score(x):
            module = model.bind(params)
            logits = module.logits(module.hidden_from(x, jax.tree.map(jnp.asarray, context)))
            return jnp.stack([logits[b, last[b]].sum(-1).mean() for b in range(2)])

        x = np.asarray(model.bind(params).embed(tokens, jnp.float64))
        step = 1e-5
        for b, t in PLACES:
            slopes = []
            for d in range(x.shape[-1]):
                move = np.zeros_like(x)
                move[b, t, d] = step
                slopes.append(float(score(x + move)[b] - score(x - move)[b]) / (2 * step))
            np.testing.assert_allclose(norms[b, t], np.linalg.norm(slopes), rtol=1e-6)
        assert norms.dtype == np.float64
        want = np.where(IDS == [[2], [1]], [[29], [8]] - np.arange(TIME)[None], -1)
        np.testing.assert_array_equal(distance, want)
        assert not norms[distance < 0].any()

        table = probes.gradient_influence(model, params, made, dtype=jnp.float64)
    assert [(e.first, e.last) for e in table] == [(0, 0), (1, 1), (2, 3), (4, 7), (8, 15), (16, 24)]
    assert [e.inputs for e in table] == [2, 2, 4, 8, 9, 9]
    np.testing.assert_allclose(
        table.entries[2].influence, norms[(distance == 2) | (distance == 3)].mean()
    )
