"""The FLOPs of distillation."""

import math
from collections.abc import Callable, Collection

from flax.traverse_util import flatten_dict

from hybridlm.distill.blockwise import distilled_layers
from hybridlm.models.params import Model
from hybridlm.models.settings import ModelConfig
from hybridlm.models.stack import UNIT


def distillation_cost(objective: str, teacher: ModelConfig, model: Model) -> Callable[[int], float]:
    """FLOPs of a step per token, as a function of the document's length.

    "blockwise" takes the teacher's layers forward, and forward and backward (3 times forward) of the
    mixers that it trains, but for the gradients of their inputs, which nothing asks for. "kl" takes the
    student forward and backward, and the teacher forward.

    Args:
      model: the student.
    """
    student = model.config
    if objective == "blockwise":
        mixers = student.layer_mixers()
        layers = distilled_layers(teacher, student)
        trained = [mixers[index][1] for index in layers]
        unasked = 2 * _input_projections(model, layers)

        def blockwise(length: int) -> float:
            new = sum(mixer.flops_per_token(student.width, length) for mixer in trained)
            return _forward(teacher, length) + 3 * new - unasked

        return blockwise
    return lambda length: (
        3 * (_forward(student, length) + _head(student))
        + _forward(teacher, length)
        + _head(teacher)
    )


def _input_projections(model: Model, layers: Collection[int]) -> int:
    """Parameters of the matrices that multiply the mixers' inputs, in these layers."""
    axes, shapes = flatten_dict(model.axes), flatten_dict(model.abstract)
    starts = tuple(f"layers.{index}.mixer." for index in layers)
    found = 0
    for path, names in flatten_dict(model.names).items():
        shape, own = shapes[path].shape, axes[path]
        if path[0] == UNIT:  # the first axis is that of the scan
            shape, own = shape[1:], own[1:]
        if len(shape) > 1 and own[0] == "embed":
            found += math.prod(shape) * sum(name.startswith(starts) for name in names)
    return found


def _forward(config: ModelConfig, length: int) -> float:
    """Of all layers, without the head."""
    mixing = sum(mixer.flops_per_token(config.width, length) for _, mixer in config.layer_mixers())
    return mixing + sum(f.flops_per_token(config.width) for f in config.layer_feedforwards())


def _head(config: ModelConfig) -> float:
    return 2.0 * config.width * config.vocab_size
