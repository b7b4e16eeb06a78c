"""The estimate of memory, against what the backward pass of a scan over the layers keeps."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hybridlm.models.params import Model
from hybridlm.train.memory import estimate_memory
from tests.models import small

BATCH, TIME, REPEATS = 3, 11, 5
FULL = dict(kind="attention", heads=4, kv_heads=2, head_dim=6, value_dim=7)
DSA = dict(small.MIXERS["dsa"], index_heads=3, index_dim=6)
#: Prefix, pattern, mixers and other settings.
FORMS = {
    "plain": ("", "full", dict(full=FULL), {}),
    "streams": ("", "full", dict(full=FULL), dict(streams=dict(count=4))),
    "keys": ("own", "other", dict(own=dict(FULL, kv_out="x"), other=dict(FULL, kv_in="x")), {}),
    "index": (
        "own",
        "other",
        dict(own=dict(DSA, index_out="x"), other=dict(DSA, index_in="x")),
        {},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_full_remat_keeps_the_residual_stream_and_what_layers_hand_on(form):
    prefix, pattern, mixers, settings = FORMS[form]
    depth = REPEATS + len(prefix.split())
    layers = dict(prefix=prefix, depth=depth, mixers=mixers)
    model = Model.of(small.model_config(pattern, **layers, **settings))
    context = small.context(np.ones((BATCH, TIME), np.int32))

    def hidden(params):
        tokens_BT = jnp.zeros((BATCH, TIME), jnp.int32)
        return model.bind(params).hidden(tokens_BT, context, remat=jax.checkpoint)

    saved = jax.eval_shape(lambda params: jax.vjp(hidden, params)[1], model.abstract)
    shapes = [x.shape for x in jax.tree.leaves(saved) if x.dtype == jnp.float32]
    kept = sum(math.prod(s) for s in shapes if s[:3] == (REPEATS, BATCH, TIME))
    needed = estimate_memory(model, optax.sgd(0.1), BATCH * TIME, "full", 4)
    assert needed.activations * REPEATS == 4 * kept * depth
