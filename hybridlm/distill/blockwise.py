"""Stage 1, blockwise local distillation: each new mixer learns what the teacher's gives.

Every layer of the teacher gives its mixer's input and output; the student's mixer of that layer reads the
same input, and its loss is the mean squared error of its output (arXiv 2601.11667, sec. 3.1). No gradient
leaves a layer. So the gradients are computed layer by layer inside the walk over the teacher's layers:
memory holds the activations of one layer, and what is not finite in one layer reaches no other.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from hybridlm.distill.layers import layers_of
from hybridlm.errors import UserError
from hybridlm.models import stack
from hybridlm.models.lm import HybridLM
from hybridlm.models.mixers import SequenceContext
from hybridlm.models.params import Params
from hybridlm.models.settings import ModelConfig
from hybridlm.models.stack import GROUPS, ByGroup, items
from hybridlm.parallel.axes import split_over_batch


class LayerSums(NamedTuple):
    """Sums over the real tokens of a batch, by layer (L,), float32; 0 for layers that are not distilled.

    Attributes:
      error: of squared differences between the student's and the teacher's mixer outputs.
      power: of squares of the teacher's mixer outputs.
    """

    error: jax.Array
    power: jax.Array


def distilled_layers(teacher: ModelConfig, student: ModelConfig) -> tuple[int, ...]:
    """The layers whose mixers differ.

    Raises:
      UserError: if none does, or a mixer hands arrays on to other layers.
    """
    for config, whose in ((teacher, "teacher"), (student, "student")):
        if config.cross_layer():
            raise UserError(
                f"the {whose} has mixers that hand arrays on to later layers"
                f" ({', '.join(config.cross_layer())}), which blockwise distillation cannot part"
            )
    pairs = enumerate(zip(layers_of(teacher), layers_of(student), strict=True))
    found = tuple(index for index, (ours, theirs) in pairs if ours.mixer != theirs.mixer)
    if not found:
        raise UserError("no layer of the student has another mixer than the teacher's")
    return found


def gradients(
    teacher: HybridLM,
    student: HybridLM,
    layers: tuple[int, ...],
    tokens_BT: jax.Array,
    context: SequenceContext,
    dtype: jnp.dtype,
) -> tuple[LayerSums, Params]:
    """The sums of a batch, and the gradients of each layer's error to its own mixer.

    Args:
      teacher, student: bound to their parameters, with layers stacked alike.
      layers: those that are distilled (`distilled_layers`).
      context: segment ids and positions.
      dtype: of activations and matrix products; errors are summed in float32.

    Returns:
      (sums, gradients nested as the student's parameters, with the mixers of `layers` alone). The
      student's mixers may add a loss of their own (`Mixer.with_loss`): its gradient is added as that
      of the mean squared error is, times tokens and width.
    """
    real_BT1 = (context.segment_ids_BT != 0)[..., None]
    scale = jnp.sum(real_BT1) * student.config.width
    graphdefs, states = mixers_of(teacher, student, layers)
    taught, names = (stack.block_names(model.config.layout) for model in (teacher, student))

    def apply(block, index, x_BTD, context, carry, state):
        def mix(x_BTD):
            y_BTD = block.mixer(x_BTD, context)
            if state is None:
                return y_BTD, None
            target_BTD = jax.lax.stop_gradient(y_BTD).astype(jnp.float32)

            def loss(state):
                mixer = nnx.merge(graphdefs[index], state)
                z_BTD, own = mixer.with_loss(
                    x_BTD, context.apart()
                )  # layers read the teacher's keys
                gap_BTD = jnp.where(real_BT1, z_BTD.astype(jnp.float32) - target_BTD, 0)
                error = jnp.sum(jnp.square(gap_BTD))
                return error + scale * own, error

            grads, error = jax.grad(loss, has_aux=True)(state)
            power = jnp.sum(jnp.square(jnp.where(real_BT1, target_BTD, 0)))
            return y_BTD, (error, power, nnx.to_pure_dict(grads))

        def feed(x_BTD):
            return block.mlp(x_BTD, context), None

        y_BTD, (found, _) = block.join(x_BTD, mix, feed, context)
        return split_over_batch(y_BTD), carry, found

    context = context._replace(tokens_BT=tokens_BT)
    x_BTD = teacher.embed(tokens_BT, dtype)
    _, _, found = teacher.apply_layers(apply, x_BTD, context, inputs=states)
    sums = [(0.0, 0.0)] * student.config.depth
    grads = {}
    for number, one in enumerate(stack.by_layer(_only(found, slice(0, 2)), teacher.config.layout)):
        sums[number] = one or (0.0, 0.0)
    for group in GROUPS:
        # By name: dicts that left `lax.scan` are in the order of sorted names, "10_" before "2_".
        for ours, name in zip(taught[group], names[group], strict=True):
            one = found[group][ours]
            if one is not None:
                grads.setdefault(group, {})[name] = {"mixer": one[2]}
    error_L, power_L = (jnp.stack([jnp.float32(s[i]) for s in sums]) for i in (0, 1))
    return LayerSums(error_L, power_L), grads


def part_of(grads: Params, part: Params) -> Params:
    """The gradients of the arrays that `part` has."""
    flat = flatten_dict(grads)
    return unflatten_dict({path: flat[path] for path in flatten_dict(part)})


def mixers_of(
    teacher: HybridLM, student: HybridLM, layers: tuple[int, ...]
) -> tuple[dict[int, Any], ByGroup]:
    """The graphs of distilled mixers by the first layer that has them, and their arrays.

    The arrays are under the names of the teacher's blocks, None for layers that are not distilled.
    """
    layout = student.config.layout
    first = {"prefix": 0, "unit": len(layout.prefix)}
    first["suffix"] = first["unit"] + layout.repeats * len(layout.unit)
    names = stack.block_names(teacher.config.layout)
    graphdefs: dict[int, Any] = {}
    states: ByGroup = {group: {} for group in GROUPS}
    for group, blocks in zip(GROUPS, (student.prefix, student.unit, student.suffix), strict=True):
        for number, (name, (_, block)) in enumerate(zip(names[group], items(blocks), strict=True)):
            states[group][name] = None
            if first[group] + number in layers:
                graphdef, states[group][name] = nnx.split(block.mixer)
                graphdefs[first[group] + number] = graphdef
    return graphdefs, states


def _only(found: ByGroup, which: slice) -> ByGroup:
    return {
        group: {name: None if one is None else one[which] for name, one in blocks.items()}
        for group, blocks in found.items()
    }
