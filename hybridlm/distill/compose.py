"""A model that takes each layer from a teacher or from its student."""

import dataclasses
from collections.abc import Collection

from hybridlm.distill.layers import layers_of, with_layers
from hybridlm.errors import UserError
from hybridlm.models.params import Model, Params
from hybridlm.models.settings import ModelConfig
from hybridlm.runs.opened import OpenedModel

#: What may differ: mixers and blocks, which are compared layer by layer, and what no trained model reads.
_OWN = ("pattern", "prefix", "suffix", "mixers", "blocks", "init_std", "z_loss")


def compose(
    teacher: OpenedModel, student: OpenedModel, keep: Collection[int]
) -> tuple[ModelConfig, Params]:
    """The model whose layers in `keep` are the teacher's, and whose others are the student's.

    Embedding, final norm and head are the teacher's; the two models are to share them.

    Args:
      keep: numbers of layers, from 0 at the bottom.

    Returns:
      (settings, parameters as numpy arrays); equal arrays are not copied where layers are not stacked.

    Raises:
      UserError: where the models do not have the same depth and outer arrays, or a number is no layer's.
    """
    config = composed_config(teacher.config, student.config, keep)
    of_teacher = teacher.model.by_name(teacher.params)
    of_student = student.model.by_name(student.params)
    named = {}
    for name, value in of_teacher.items():
        if not name.startswith("layers.") or int(name.split(".")[1]) in keep:
            named[name] = value
    for name, value in of_student.items():
        if name.startswith("layers.") and int(name.split(".")[1]) not in keep:
            named[name] = value
    return config, Model.of(config).from_names(named)


def composed_config(
    teacher: ModelConfig, student: ModelConfig, keep: Collection[int]
) -> ModelConfig:
    """The settings of `compose`.

    Raises:
      UserError: as `compose`.
    """
    check_alike(teacher, student)
    wrong = sorted(i for i in keep if not 0 <= i < teacher.depth)
    if wrong:
        raise UserError(
            f"layer {wrong[0]} cannot be kept: the models have the layers 0 to {teacher.depth - 1}"
        )
    pairs = enumerate(zip(layers_of(teacher), layers_of(student)))
    return with_layers(teacher, [ours if i in keep else theirs for i, (ours, theirs) in pairs])


def composed(teacher: OpenedModel, student: OpenedModel, keep: Collection[int]) -> OpenedModel:
    """`compose` as a model that `save_model` writes, evaluations and probes take."""
    config, params = compose(teacher, student, keep)
    settings = {k: v for k, v in student.settings.items() if k != "architecture"}
    return dataclasses.replace(
        student, model=Model.of(config), params=params, settings=settings, averaged=()
    )


def check_alike(teacher: ModelConfig, student: ModelConfig) -> None:
    """Checks that the models may differ in their layers' mixers only.

    Raises:
      UserError: naming the first setting that differs.
    """
    for field in dataclasses.fields(ModelConfig):
        name = field.name
        if name in _OWN:
            continue
        ours, theirs = getattr(teacher, name), getattr(student, name)
        if ours != theirs:
            raise UserError(
                f"the student's model.{name} is {theirs!r} and the teacher's is {ours!r}: the two"
                " models may differ in their mixers only"
            )
    pairs = enumerate(zip(layers_of(teacher), layers_of(student)))
    for index, (ours, theirs) in pairs:
        if ours.feedforward != theirs.feedforward or ours.block != theirs.block:
            raise UserError(
                f"layer {index} of the student has another feed-forward or block than the teacher's:"
                " the two models may differ in their mixers only"
            )
