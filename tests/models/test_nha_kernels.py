"""Native Hybrid Attention runs end to end on TPU kernels: its slots and its window."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hybridlm.models.mixers import LayerSpec, SequenceContext, read_mixer
from kernels_pallas import dispatch
from kernels_pallas.testing import draw_segment_ids, error

SETTINGS = dict(kind="nha", heads=4, kv_heads=2, slots=8, window=7)
TIME = 40


def loss_and_gradients():
    """(a function that gives the loss and its gradients, its arguments)."""
    mixer = read_mixer(SETTINGS, "nha").build(LayerSpec(32, 1e-6, 1.0), rngs=nnx.Rngs(0))
    graph, parameters = nnx.split(mixer)
    rng = np.random.default_rng(0)
    ids_BT = draw_segment_ids(rng, 2, TIME)
    x_BTD = jnp.asarray(rng.standard_normal((2, TIME, 32)), jnp.float32)
    positions_BT = jnp.broadcast_to(jnp.arange(TIME)[None], ids_BT.shape)
    context = SequenceContext(ids_BT, positions_BT)

    def loss(parameters, x_BTD):
        y_BTD = nnx.merge(graph, parameters)(x_BTD, context)
        return jnp.sum(jnp.sin(y_BTD))

    return jax.value_and_grad(loss, argnums=(0, 1)), (parameters, x_BTD)


def test_slots_and_window_use_kernels():
    both, arguments = loss_and_gradients()
    with dispatch.kernels_for("tpu"):
        program = str(jax.make_jaxpr(both)(*arguments))
    for kernel in ("attention", "gated_slots"):
        for way in ("forward", "backward"):
            assert f"name={kernel}_{way}" in program


@pytest.mark.slow
def test_kernels_equal_the_chunked_forms():
    both, arguments = loss_and_gradients()
    want = jax.jit(both)(*arguments)
    with dispatch.kernels_for("tpu", interpret=True), jax.default_matmul_precision("highest"):
        got = jax.jit(both)(*arguments)
    assert error(got, want) < 1e-4
