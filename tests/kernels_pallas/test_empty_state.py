"""The state of zeros that an op or a layer makes itself is not checked for NaN and infinity.

XLA evaluates a check of zeros while it compiles: 40 s of a training step's compilation for a state of
17 million numbers, with a warning that constant folding is slow.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params
from subjects import SUBJECTS

from hybridlm.models.mixers import LayerSpec, SequenceContext, read_mixer
from kernels_pallas.testing import draw_segment_ids, floats

TIME = 61  # no other size is a multiple
OPS = ("delta_rule", "gated_linear", "gated_slots", "linear_recurrence", "selective_scan")
LAYERS = {
    **dict.fromkeys(("gdn", "gla", "rglru"), dict(heads=2)),
    **dict.fromkeys(("mamba1", "mamba2", "mamba3", "mlstm"), {}),
    "rwkv7": dict(head_dim=8),
}


def checked(jaxpr, primitive="is_finite"):
    """Shapes of the arrays that are checked, also within calls and loops."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            yield from (x.aval.shape for x in equation.invars)
        for inner in jaxprs_in_params(equation.params):
            yield from checked(inner, primitive)


@pytest.mark.parametrize("op", OPS)
def test_of_an_op(op):
    rng = np.random.default_rng(0)
    subject = SUBJECTS[op](rng)
    inputs, params = subject.inputs(rng, 2, TIME, jnp.float32), subject.params(rng, jnp.float32)
    ids, state = draw_segment_ids(rng, 2, TIME), subject.state(rng, 2, jnp.float32)
    own = {x.shape for x in floats(state)[0]}

    def shapes(state, *primitive):
        def run(inputs, ids, state):
            return subject.apply(inputs, params, ids, state, "chunked")

        return set(checked(jax.make_jaxpr(run)(inputs, ids, state).jaxpr, *primitive))

    assert own & shapes(state) and not own & shapes(None)
    # One that is given may be of zeros, too, where a program begins to decode: it is hidden from XLA.
    assert own <= shapes(state, "optimization_barrier")


@pytest.mark.parametrize("kind", LAYERS)
def test_of_a_layer(kind):
    """An array without an axis of tokens that is checked is a state."""
    mixer = read_mixer(dict(kind=kind, **LAYERS[kind]), "m")
    layer = mixer.build(LayerSpec(32, 1e-6, 0.5), rngs=nnx.Rngs(0))

    def run(x_BTD, ids_BT):
        return layer(x_BTD, SequenceContext.of(ids_BT))

    jaxpr = jax.make_jaxpr(run)(jnp.zeros((2, TIME, 32)), jnp.ones((2, TIME), jnp.int32)).jaxpr
    found = set(checked(jaxpr))
    assert found and all(any(n % TIME == 0 for n in shape) for shape in found), found
