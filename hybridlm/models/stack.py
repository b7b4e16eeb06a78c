"""The storage of layers: prefix layers, a repeating unit with stacked parameters, suffix layers.

No other file depends on this storage. Blocks form three groups, each an `nnx.Dict` by name ("0_swa"
is layer 0 of its group and has the mixer "swa"). The arrays of the group "unit" have a leading axis
of `repeats`, and one `lax.scan` runs over it, so that the compiled program does not grow with
depth. Values of layers (parameters, decoding states, scales) are passed as a `ByGroup`: a dict by
group of dicts by name, stacked in the unit like the parameters.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hybridlm.models.pattern import Layer, Layout

PREFIX, UNIT, SUFFIX = GROUPS = ("prefix", "unit", "suffix")
ByGroup = dict[str, dict[str, Any]]
Body = Callable[[Any, Any, Any, Any], tuple[Any, Any]]
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


def keep_all(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself: its backward pass keeps what it needs."""
    return function


class Remat(NamedTuple):
    """What the backward pass computes again, each a wrapper of functions such as `jax.checkpoint`.

    Attributes:
      layer: wraps each layer. With `jax.checkpoint` the input of every layer is kept, and the
        activations of one layer exist at a time.
      unit: wraps each application of the repeating unit, and each layer before and after it. With
        `jax.checkpoint` only the unit's input is kept, and the activations of all its layers exist
        at a time.
    """

    layer: Wrap = keep_all
    unit: Wrap = keep_all


class Address(NamedTuple):
    """The place of a layer's parameters.

    Attributes:
      group: "prefix", "unit" or "suffix".
      name: name of the block in its group.
      repeat: index into the leading axis of the unit's arrays; None in the other groups.
    """

    group: str
    name: str
    repeat: int | None = None


def block_name(index: int, layer: Layer) -> str:
    """The name of the block number `index` of a group."""
    return f"{index}_{layer.label}"


def addresses(layout: Layout) -> tuple[Address, ...]:
    """The address of each layer, bottom to top."""
    by = block_names(layout)
    return (
        *(Address(PREFIX, name) for name in by[PREFIX]),
        *(Address(UNIT, name, repeat) for repeat in range(layout.repeats) for name in by[UNIT]),
        *(Address(SUFFIX, name) for name in by[SUFFIX]),
    )


def block_names(layout: Layout) -> dict[str, list[str]]:
    """The names of the blocks of each group, bottom to top."""
    layers = {
        PREFIX: layout.prefix,
        UNIT: layout.unit if layout.repeats else (),
        SUFFIX: layout.suffix,
    }
    return {g: [block_name(i, layer) for i, layer in enumerate(ls)] for g, ls in layers.items()}


def entry(values: ByGroup | None, group: str, name: str) -> Any:
    """One entry of a `ByGroup`, stacked in the unit; None if `values` is None."""
    return None if values is None else values[group][name]


def copies(layout: Layout, index: int) -> range:
    """The layers that share a block in `Stack.scan`: all repeats in the unit, else `index` alone."""
    first, count = len(layout.prefix), len(layout.unit)
    end = first + layout.repeats * count
    if not first <= index < end:
        return range(index, index + 1)
    return range(first + (index - first) % count, end, count)


def layer_params(params: ByGroup, address: Address) -> Any:
    """The parameters of one layer, as a nested dict; `params` may hold arrays or shapes."""
    stacked = params[address.group][address.name]
    if address.repeat is None:
        return stacked
    return jax.tree.map(lambda x: _row(x, address.repeat), stacked)


def with_layer(params: ByGroup, address: Address, new: Any) -> ByGroup:
    """A copy of `params` in which one layer has `new`, nested as in `layer_params`."""
    group = dict(params[address.group])
    old = group[address.name]
    if address.repeat is not None:
        new = jax.tree.map(lambda x, row: _with_row(x, address.repeat, row), old, new)
    group[address.name] = new
    return {**params, address.group: group}


def layer_shapes(params: ByGroup, address: Address) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of a layer, by its path in the layer ("mixer/q/kernel")."""
    leaves = jax.tree_util.tree_leaves_with_path(params[address.group][address.name])
    skip = 0 if address.repeat is None else 1
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(x.shape[skip:])
        for path, x in leaves
    }


def names(path: Sequence[str], layout: Layout) -> tuple[str, ...]:
    """The names of the parameters in the array at `path` of the parameters.

    A name is a path with dots, in which layers are numbered as in the model:
    "layers.3.mixer.q.kernel". An array of the unit holds one parameter of each repeat.
    """
    if path[0] not in GROUPS:
        return (".".join(path),)
    group, name, *rest = path
    below = {PREFIX: 0, UNIT: len(layout.prefix), SUFFIX: len(layout.layers) - len(layout.suffix)}
    first = below[group] + block_names(layout)[group].index(name)
    return tuple(".".join(("layers", str(i), *rest)) for i in copies(layout, first))


def by_layer(values: ByGroup, layout: Layout) -> list[Any]:
    """A `ByGroup` as a list over layers, bottom to top."""
    return [layer_params(values, address) for address in addresses(layout)]


def by_group(values: Sequence[Any], layout: Layout) -> ByGroup:
    """A list over layers, bottom to top, as a `ByGroup`."""
    found: dict[str, dict[str, list[Any]]] = {group: {} for group in GROUPS}
    for address, value in zip(addresses(layout), values, strict=True):
        found[address.group].setdefault(address.name, []).append(value)
    return {
        group: {
            name: jax.tree.map(lambda *xs: jnp.stack(xs), *rows) if group == UNIT else rows[0]
            for name, rows in blocks.items()
        }
        for group, blocks in found.items()
    }


def logical_axes(path: Sequence[str], axes: Sequence[str]) -> tuple[str, ...]:
    """The logical axes of the model's parameter at `path`, from its axes in a single layer."""
    return (("layers",) if path[0] == UNIT else ()) + tuple(axes)


def build(
    layout: Layout, make: Callable[..., nnx.Module], rngs: nnx.Rngs
) -> tuple[nnx.Dict, nnx.Dict, nnx.Dict]:
    """Makes the initialised groups prefix, unit and suffix.

    Args:
      make: (layer, index, rngs) -> block. `index` is the layer's number in the model. It is traced
        in the unit, so only initial values may depend on it.
    """
    first, count = len(layout.prefix), len(layout.unit)

    def group(layers: Sequence[Layer], start: Any, rngs: nnx.Rngs) -> nnx.Dict:
        return nnx.Dict({block_name(i, x): make(x, start + i, rngs) for i, x in enumerate(layers)})

    prefix = group(layout.prefix, 0, rngs)
    unit = nnx.Dict()
    if layout.repeats:
        keys = jax.random.split(rngs.params(), layout.repeats)
        starts = first + count * jnp.arange(layout.repeats, dtype=jnp.int32)
        states = jax.vmap(lambda key, start: nnx.state(group(layout.unit, start, nnx.Rngs(key))))(
            keys, starts
        )
        one = nnx.eval_shape(lambda: group(layout.unit, jnp.int32(first), nnx.Rngs(0)))
        unit = nnx.merge(nnx.graphdef(one), states)
    suffix = group(layout.suffix, first + layout.repeats * count, rngs)
    return prefix, unit, suffix


class Stack(NamedTuple):
    """The blocks of a model, with methods that iterate over them."""

    prefix: nnx.Dict
    unit: nnx.Dict
    suffix: nnx.Dict
    repeats: int

    def scan(
        self,
        body: Body,
        carry: Any,
        inputs: ByGroup | None = None,
        *,
        remat: Remat = Remat(),
        unroll: bool = False,
    ) -> tuple[Any, ByGroup]:
        """Runs `body` on all layers, bottom to top; returns the last carry and all outputs.

        Args:
          body: (block, index, carry, input) -> (carry, output). It is traced once for each layer of
            the unit, with the index of the layer's first repeat.
          inputs: the input of each layer; None passes None to all layers.
          remat: what the backward pass computes again.
          unroll: traces the unit's repeats one by one, each with its own `index`.
        """

        def group(
            blocks: nnx.Dict, carry: Any, inputs: Any, start: int, around: Wrap = keep_all
        ) -> tuple[Any, Any]:
            outputs = {}
            for i, (name, block) in enumerate(items(blocks)):
                given = None if inputs is None else inputs[name]
                layer = around(remat.layer(functools.partial(body, block, start + i)))
                carry, outputs[name] = layer(carry, given)
            return carry, outputs

        of = (lambda name: None) if inputs is None else inputs.__getitem__
        outputs: ByGroup = {}
        carry, outputs[PREFIX] = group(self.prefix, carry, of(PREFIX), 0, remat.unit)
        first, count = len(self.prefix), len(self.unit)
        outputs[UNIT] = {}
        if self.repeats:
            graphdef, stacked = nnx.split(self.unit)

            xs = (stacked, of(UNIT))

            def unit(start: int) -> Callable[[Any, Any], tuple[Any, Any]]:
                @remat.unit
                def apply(carry: Any, xs: Any) -> tuple[Any, Any]:
                    state, given = xs
                    return group(nnx.merge(graphdef, state), carry, given, start)

                return apply

            if unroll:
                each = []
                for i in range(self.repeats):
                    row = jax.tree.map(lambda x, i=i: x[i], xs)
                    carry, output = unit(first + i * count)(carry, row)
                    each.append(output)
                outputs[UNIT] = jax.tree.map(lambda *ys: jnp.stack(ys), *each)
            else:
                carry, outputs[UNIT] = jax.lax.scan(unit(first), carry, xs)
        above = first + self.repeats * count
        carry, outputs[SUFFIX] = group(self.suffix, carry, of(SUFFIX), above, remat.unit)
        return carry, outputs

    def map(self, function: Callable[..., Any], inputs: ByGroup | None = None) -> ByGroup:
        """`function(block, input)` of each layer on its own; the input is None without `inputs`.

        In the unit, the function receives a block with the parameters of one layer.
        """

        def group(blocks: nnx.Dict, inputs: Any) -> dict[str, Any]:
            return {n: function(b, None if inputs is None else inputs[n]) for n, b in items(blocks)}

        of = (lambda name: None) if inputs is None else inputs.__getitem__
        unit: dict[str, Any] = {}
        if self.repeats:
            graphdef, stacked = nnx.split(self.unit)
            unit = jax.vmap(
                lambda state, given: group(nnx.merge(graphdef, state), given),
                axis_size=self.repeats,
            )(stacked, of(UNIT))
        return {
            PREFIX: group(self.prefix, of(PREFIX)),
            UNIT: unit,
            SUFFIX: group(self.suffix, of(SUFFIX)),
        }

    def update(self, change: Callable[[Any, Any], None], inputs: ByGroup) -> None:
        """Changes the parameters of each layer in place: `change(block, input)` sets them."""

        def changed(block: Any, given: Any) -> nnx.State:
            change(block, given)
            return nnx.state(block)

        states = self.map(changed, inputs)
        for blocks, name in zip((self.prefix, self.unit, self.suffix), GROUPS):
            for key, block in items(blocks):
                nnx.update(block, states[name][key])

    def blocks(self) -> Iterator[tuple[Address, Any]]:
        """(address, block) of each layer, bottom to top; blocks of the unit are copies."""
        for name, block in items(self.prefix):
            yield Address(PREFIX, name), block
        graphdef, stacked = nnx.split(self.unit)
        for i in range(self.repeats):
            row = nnx.merge(graphdef, jax.tree.map(lambda p, i=i: p[i], stacked))
            for name, block in items(row):
                yield Address(UNIT, name, i), block
        for name, block in items(self.suffix):
            yield Address(SUFFIX, name), block


def items(blocks: nnx.Dict) -> list[tuple[str, Any]]:
    """(name, block) of a group, bottom to top."""
    return sorted(blocks.items(), key=lambda item: int(item[0].split("_", 1)[0]))


def _row(x: Any, index: int) -> Any:
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    return x[index]


def _with_row(x: Any, index: int, row: Any) -> Any:
    if isinstance(x, jax.Array):
        return x.at[index].set(row)
    x = np.array(x)
    x[index] = row
    return x
