"""Every mixer that a published model has, with its weights, against that model's own layer."""

import comparison
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from mappings import MAPPINGS

from hybridlm.models.mixers import LayerSpec, SequenceContext, read_mixer


def apply(config, params, x_BTD, norm_eps):
    """The outputs of a mixer or feed-forward for one document a row, with the parameters `params`."""
    batch, time, width = x_BTD.shape
    spec = LayerSpec(width, norm_eps, 1.0)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: config.build(spec, rngs=nnx.Rngs(0))))
    want, got = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (nnx.to_pure_dict(abstract), params))
    )
    assert got == want, f"parameters are {want}, the mapping gives {got}"
    nnx.replace_by_pure_dict(abstract, params)
    index_BT = jnp.broadcast_to(jnp.arange(time, dtype=jnp.int32)[None], (batch, time))
    context = SequenceContext(jnp.ones((batch, time), jnp.int32), index_BT)
    return nnx.merge(graph, abstract)(x_BTD, context)


#: jamba_mamba_mixer has what these have.
SLOW = ("mamba_mixer", "falcon_mamba_mixer")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in MAPPINGS]
)
def test_mixer_equals_oracle(name, fixtures):
    fixture = comparison.Fixture.load(fixtures, name)
    norm_eps = fixture.settings.get("norm_eps", 1e-6)

    def run(inputs, weights):
        config, params = MAPPINGS[name](weights, fixture.settings)
        config = read_mixer(config, "mixer")
        config.check_width(inputs["x"].shape[-1])
        return dict(y=apply(config, params, inputs["x"], norm_eps))

    fixture.compare(run)


def test_every_fixture_of_a_mixer_is_used(fixtures):
    comparison.check_complete(fixtures, MAPPINGS, "")
