"""The FLOPs of distillation."""

from collections.abc import Callable

from hybridlm.distill.blockwise import distilled_layers
from hybridlm.models.settings import ModelConfig


def distillation_cost(
    objective: str, teacher: ModelConfig, student: ModelConfig
) -> Callable[[int], float]:
    """FLOPs of a step per token, as a function of the document's length.

    "blockwise" takes the teacher's layers forward, and forward and backward (3 times forward) of the
    mixers that it trains; that counts gradients of their inputs, too, which are not computed. "kl"
    takes the student forward and backward, and the teacher forward.
    """
    if objective == "blockwise":
        mixers = student.layer_mixers()
        trained = [mixers[index][1] for index in distilled_layers(teacher, student)]

        def blockwise(length: int) -> float:
            new = sum(mixer.flops_per_token(student.width, length) for mixer in trained)
            return _forward(teacher, length) + 3 * new

        return blockwise
    return lambda length: (
        3 * (_forward(student, length) + _head(student))
        + _forward(teacher, length)
        + _head(teacher)
    )


def _forward(config: ModelConfig, length: int) -> float:
    """Of all layers, without the head."""
    mixing = sum(mixer.flops_per_token(config.width, length) for _, mixer in config.layer_mixers())
    return mixing + sum(f.flops_per_token(config.width) for f in config.layer_feedforwards())


def _head(config: ModelConfig) -> float:
    return 2.0 * config.width * config.vocab_size
