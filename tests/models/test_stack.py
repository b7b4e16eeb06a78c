"""Each layer has one address, and the scan passes cross-layer arrays on, in every layout."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from hybridlm.models import mixers as mixer_kinds
from hybridlm.models import stack
from hybridlm.models.layers import Linear
from hybridlm.models.mixers import LayerSpec, MixerConfig, SequenceContext
from hybridlm.models.mixers.base import Mixer
from hybridlm.models.params import Model
from hybridlm.train.step import REMAT

LAYOUTS = [
    dict(pattern="swa full", depth=7, prefix="rec", suffix="full swa"),
    dict(pattern="swa full", depth=4),
    dict(pattern="swa full rec", depth=2),  # the unit does not fit once: no scan
    dict(pattern="rec", depth=3, prefix="swa"),
]


@pytest.fixture(params=LAYOUTS, ids=lambda layout: layout["pattern"] + str(layout["depth"]))
def model(request) -> Model:
    return Model.of(small.model_config(**request.param))


def numbered(model):
    """Parameters whose numbers are all different."""
    count = iter(range(10**6))
    return jax.tree.map(
        lambda x: np.array([next(count) for _ in range(x.size)], float).reshape(x.shape),
        model.abstract,
    )


def test_a_layers_parameters_are_those_of_its_block(model):
    params = numbered(model)
    blocks = [block for _, block in model.bind(params).blocks()]
    assert len(model.addresses) == len(blocks) == model.config.depth
    for index, block in enumerate(blocks):
        expected = nnx.to_pure_dict(nnx.state(block))
        found = model.layer(params, index)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        shapes = {
            jax.tree_util.keystr(path, simple=True, separator="/"): x.shape
            for path, x in jax.tree_util.tree_leaves_with_path(expected)
        }
        assert model.layer_shapes(index) == shapes
        abstract = model.layer(model.abstract, index)
        assert jax.tree.map(np.shape, abstract) == jax.tree.map(np.shape, expected)


def test_every_parameter_of_the_layers_has_one_address(model):
    params = numbered(model)
    layers = [model.layer(params, i) for i in range(model.config.depth)]
    found = np.concatenate([np.ravel(x) for x in jax.tree.leaves(layers)])
    inside = {group: params.get(group, {}) for group in stack.GROUPS}
    everything = np.concatenate([np.ravel(x) for x in jax.tree.leaves(inside)])
    np.testing.assert_array_equal(np.sort(found), np.sort(everything))


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_only_the_given_layer_is_replaced(model, array):
    params = jax.tree.map(array, numbered(model))
    before = jax.tree.map(np.array, params)
    for index in range(model.config.depth):
        new = jax.tree.map(lambda x: -1.0 - x, model.layer(params, index))
        changed = model.with_layer(params, index, new)
        for other in range(model.config.depth):
            expected = new if other == index else model.layer(before, other)
            jax.tree.map(np.testing.assert_array_equal, model.layer(changed, other), expected)
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_by_layer_inverts_by_group(model):
    layout = model.config.layout
    values = [jnp.full(2, i) for i in range(model.config.depth)]
    back = stack.by_layer(stack.by_group(values, layout), layout)
    np.testing.assert_array_equal(np.stack(back), np.stack(values))


@dataclasses.dataclass(frozen=True)
class ToyConfig(MixerConfig):
    """A mixer that reads the lowest layer's values (as RWKV-7) and all lower layers' outputs."""

    kind_name: ClassVar[str] = "toy"
    equation: ClassVar[str] = "y = W x + first layer's W x + mean of what layers below gave"
    source: ClassVar[str] = "this test"

    def build(self, spec: LayerSpec, *, rngs: nnx.Rngs) -> "Toy":
        return Toy(self, spec, rngs=rngs)

    def flops_per_token(self, width: int, seq_len: int) -> float:
        return 2 * width * width

    def state_bytes(self, width: int, seq_len: int, itemsize: int = 2) -> int:
        return 0

    def cross_layer(self, width: int, depth: int) -> dict[str, tuple[int, ...]]:
        return {"first_value": (width,), "below": (depth, width)}


class Toy(Mixer):
    def __init__(self, config: ToyConfig, spec: LayerSpec, *, rngs: nnx.Rngs):
        self.value = Linear(spec.width, spec.width, ("embed", "heads"), rngs=rngs)
        self.start = nnx.Param(jnp.ones(()) * spec.index / spec.depth, axes=())

    def __call__(self, x_BTD: jax.Array, context: SequenceContext) -> jax.Array:
        layer, handed = context.layer, context.cross_layer
        v_BTD = self.value(x_BTD)
        first_BTD = jnp.where(layer == 0, v_BTD, handed["first_value"])
        y_BTD = v_BTD + first_BTD + handed["below"].sum(axis=2) / jnp.maximum(layer, 1)
        handed["first_value"] = first_BTD
        handed["below"] = handed["below"].at[:, :, layer].set(y_BTD)
        return y_BTD

    def init_state(self, batch, max_len, dtype):
        return ()

    def extend(self, x_BTD, context, state):
        return self(x_BTD, context), state


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(mixer_kinds.KINDS, "toy", ToyConfig)
    mixers = {"toy": dict(kind="toy"), "full": small.MIXERS["full"]}
    return Model.of(
        small.model_config("toy full", depth=6, prefix="toy", suffix="toy", mixers=mixers)
    )


def test_layers_pass_arrays_on(toy):
    """Prefix, scan and suffix give the result of a loop over layers, also in decoding."""
    params = jax.jit(toy.init)(jax.random.key(0))
    module = toy.bind(params)
    tokens = jax.random.randint(jax.random.key(1), (2, 9), 0, 40)
    context = SequenceContext.of(jnp.ones((2, 9), jnp.int32))
    x_BTD = module.embed(tokens)
    handed = {"first_value": jnp.zeros((2, 9, 32)), "below": jnp.zeros((2, 9, 6, 32))}
    for index, (_, block) in enumerate(module.blocks()):
        x_BTD = block(x_BTD, context._replace(cross_layer=handed, layer=index))
    expected = module.logits(module.final_norm(x_BTD))
    for scan in (True, False):
        found = module.logits(module.hidden(tokens, context, scan=scan))
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    found, _ = module.extend(tokens, context, module.init_decode(2, 9))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    for remat in REMAT.values():
        other = module.logits(module.hidden(tokens, context, remat=remat))
        np.testing.assert_allclose(other, expected, rtol=2e-5, atol=2e-5)


def test_initial_values_may_depend_on_the_layer(toy):
    """Layers 0 to 5 are toy, toy, full, toy, full, toy."""
    params = jax.jit(toy.init)(jax.random.key(0))
    starts = [toy.layer(params, i)["mixer"].get("start") for i in range(6)]
    assert [None if s is None else round(6 * float(s)) for s in starts] == [0, 1, None, 3, None, 5]


def test_cross_layer_arrays_of_different_shapes_are_refused(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class OtherConfig(ToyConfig):
        kind_name: ClassVar[str] = "other"

        def cross_layer(self, width, depth):
            return {"first_value": (2 * width,)}

    monkeypatch.setitem(mixer_kinds.KINDS, "toy", ToyConfig)
    monkeypatch.setitem(mixer_kinds.KINDS, "other", OtherConfig)
    mixers = {"a": dict(kind="toy"), "b": dict(kind="other")}
    with pytest.raises(
        Exception,
        match="gives the array 'first_value' the shape .64,., and other layers give it .32,.",
    ):
        small.model_config("a b", mixers=mixers)


def test_each_parameter_has_one_name_with_its_layers_number(model):
    params = numbered(model)
    named = model.by_name(params)
    stacked = jax.tree.leaves(model.names, is_leaf=lambda x: isinstance(x, tuple))
    assert sorted(named) == sorted(name for names in stacked for name in names)
    for index in range(model.config.depth):
        layer = {
            f"layers.{index}.{jax.tree_util.keystr(path, simple=True, separator='.')}": value
            for path, value in jax.tree_util.tree_leaves_with_path(model.layer(params, index))
        }
        for name, value in layer.items():
            np.testing.assert_array_equal(named.pop(name), value)
    assert {name.split(".")[0] for name in named} == {"embedding", "final_norm"}
    back = model.from_names(model.by_name(params))
    jax.tree.map(np.testing.assert_array_equal, back, params)
