"""The estimate of memory, against what the backward pass of a scan over the layers keeps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hybridlm.models.params import Model
from hybridlm.train.memory import estimate_memory
from hybridlm.train.step import REMAT
from tests.models import small

BATCH, TIME, REPEATS = 3, 11, 5
FULL = dict(kind="attention", heads=4, kv_heads=2, head_dim=6, value_dim=7)
DSA = dict(small.MIXERS["dsa"], index_heads=3, index_dim=6)
#: Prefix, pattern, mixers and other settings.
FORMS = {
    "plain": ("", "full", dict(full=FULL), {}),
    "pair": ("", "full other", dict(full=FULL, other=dict(FULL, heads=2)), {}),
    "streams": ("", "full", dict(full=FULL), dict(streams=dict(count=4))),
    "keys": ("own", "other", dict(own=dict(FULL, kv_out="x"), other=dict(FULL, kv_in="x")), {}),
    "index": (
        "own",
        "other",
        dict(own=dict(DSA, index_out="x"), other=dict(DSA, index_in="x")),
        {},
    ),
}


@pytest.mark.parametrize("remat", ["full", "unit"])
@pytest.mark.parametrize("form", FORMS)
def test_remat_keeps_the_residual_stream_and_what_layers_hand_on(form, remat):
    """Once for each layer, or for each repeat of the unit."""
    prefix, pattern, mixers, settings = FORMS[form]
    unit = len(pattern.split())
    depth = REPEATS * unit + len(prefix.split())
    layers = dict(prefix=prefix, depth=depth, mixers=mixers)
    model = Model.of(small.model_config(pattern, **layers, **settings))
    context = small.context(np.ones((BATCH, TIME), np.int32))

    def hidden(params):
        tokens_BT = jnp.zeros((BATCH, TIME), jnp.int32)
        return model.bind(params).hidden(tokens_BT, context, remat=REMAT[remat])

    saved = jax.eval_shape(lambda params: jax.vjp(hidden, params)[1], model.abstract)
    shapes = [x.shape for x in jax.tree.leaves(saved) if x.dtype == jnp.float32]
    kept = sum(math.prod(s) for s in shapes if s[:3] == (REPEATS, BATCH, TIME))
    needed = estimate_memory(model, optax.sgd(0.1), BATCH * TIME, remat, 4)
    rows = REPEATS * (unit if remat == "full" else 1)
    assert needed.activations * rows == 4 * kept * (rows + len(prefix.split()))
