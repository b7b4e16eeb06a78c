"""Blockwise gradients: each layer's are those of its own error, whatever the layers are called."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hybridlm.distill.blockwise import distilled_layers, gradients
from hybridlm.distill.layers import stacked_like
from hybridlm.distill.transfer import transfer
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Model
from tests.distill.subjects import opened, tokens
from tests.models.small import model_config

UNIT = 12  # blocks: the names of ten and more sort before that of the second


@functools.partial(jax.jit, static_argnums=(0, 2))
def _layer(block_graph, block_state, mixer_graph, mixer_state, x_BTD, context):
    """(the teacher's layer's output, the error of the student's mixer, and its gradient)."""
    block = nnx.merge(block_graph, block_state)
    wanted = []

    def mix(x_BTD):
        wanted.append((x_BTD, block.mixer(x_BTD, context)))
        return wanted[0][1], None

    y_BTD, _ = block.run(x_BTD, mix, lambda x: (block.mlp(x, context), None))

    def error(state):
        return jnp.sum(
            jnp.square(nnx.merge(mixer_graph, state)(wanted[0][0], context) - wanted[0][1])
        )

    value, grad = jax.value_and_grad(error)(mixer_state)
    return y_BTD, value, nnx.to_pure_dict(grad)


def test_layers_of_a_long_unit_get_the_gradients_of_their_own_error():
    config = model_config(
        "full",
        depth=2 * UNIT,
        width=8,
        mixers=dict(full=dict(kind="attention", heads=1, rope=None)),
        mlp=dict(kind="swiglu", hidden=8),
    )
    given, kept = opened(config), (0, UNIT)
    layers = [index for index in range(2 * UNIT) if index not in kept]
    student = transfer(given, dict(kind="attention", window=2), layers).student
    layout = student.config.layout
    assert (len(layout.unit), layout.repeats) == (UNIT, 2)
    model = Model.of(stacked_like(config, layout))
    taught = model.from_names(given.model.by_name(given.params))
    assert distilled_layers(model.config, student.config) == tuple(layers)
    tokens_BT = jnp.asarray(tokens(time=5))
    context = SequenceContext.of(jnp.ones_like(tokens_BT))

    @jax.jit
    def blockwise(taught, learnt):
        modules = model.bind(taught), student.model.bind(learnt)
        return gradients(*modules, tuple(layers), tokens_BT, context, jnp.float32)

    sums, grads = blockwise(taught, student.params)
    teacher, learner = model.bind(taught), student.model.bind(student.params)
    x_BTD = teacher.embed(tokens_BT, jnp.float32)
    for index, ((_, block), (_, own)) in enumerate(zip(teacher.blocks(), learner.blocks())):
        x_BTD, error, expected = _layer(*nnx.split(block), *nnx.split(own.mixer), x_BTD, context)
        if index in kept:
            assert sums.error[index] == 0
            continue
        np.testing.assert_allclose(sums.error[index], error, rtol=1e-4)
        group, name, repeat = student.model.addresses[index]
        found = jax.tree.map(lambda x, i=repeat: np.asarray(x[i]), grads[group][name]["mixer"])
        for path, grad in jax.tree_util.tree_leaves_with_path(expected):
            one = functools.reduce(lambda tree, key: tree[key.key], path, found)
            scale = np.abs(grad).max()
            assert scale > 0
            np.testing.assert_allclose(one, grad, rtol=1e-3, atol=1e-4 * scale, err_msg=str(index))


def test_layers_above_read_the_teacher_s_keys_and_not_the_student_s():
    """A student that hands its own keys on leaves the error of the layer that reads them as it is."""
    attention = dict(kind="attention", heads=2)
    mixers = dict(own=dict(attention, kv_out="x"), other=dict(attention, kv_in="x"))
    sizes = dict(depth=4, width=8, mlp=dict(kind="swiglu", hidden=8))
    given, student = (
        opened(model_config("own other", mixers=mixers, **sizes), seed) for seed in (0, 1)
    )
    tokens_BT = jnp.asarray(tokens(time=7))
    context = SequenceContext.of(jnp.ones_like(tokens_BT))

    @jax.jit
    def blockwise(taught, learnt):
        modules = given.model.bind(taught), student.model.bind(learnt)
        return [
            gradients(*modules, layers, tokens_BT, context, jnp.float32)
            for layers in ((0, 1, 2, 3), (1, 3))
        ]

    (sums, grads), (alone, few) = blockwise(given.params, student.params)
    assert np.all(sums.power > 0)
    np.testing.assert_allclose(sums.error[1::2], alone.error[1::2], rtol=1e-5)
    group, name, _ = student.model.addresses[1]
    for a, b in zip(*(jax.tree.leaves(g[group][name]) for g in (grads, few)), strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
