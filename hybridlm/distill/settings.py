"""The settings of distillation."""

from typing import Annotated, Any, Literal

from hybridlm.models.settings import ModelConfig
from hybridlm.settings.bounds import (
    Between,
    IsPath,
    NonNegativeInt,
    NotEmpty,
    PositiveFloat,
    settings,
)
from hybridlm.settings.reader import read_value


@settings
class TeacherConfig:
    """The model that a run learns from, beside or in place of the data's next tokens.

    Attributes:
      path: a run, a model folder or a checkpoint of transformers, with the run's tokenizer.
      step: of the run's checkpoint; None is the newest.
      objective: "blockwise" trains the mixers that differ from the teacher's, each to give what the
        teacher's layer gives for the teacher's input, all in one pass (stage 1; arXiv 2601.11667).
        "kl" trains the whole model to give the teacher's probabilities (stage 3).
      temperature: both models' logits are divided by it in the divergence, which is multiplied by its
        square (arXiv 1503.02531).
      dtype: of the teacher's parameters in memory. "bfloat16" halves them; where train.dtype is bfloat16,
        too, only the scales of norms are rounded more than without it.
      ce_weight: share of the data's cross-entropy in the objective "kl"; the rest is the divergence.
      model: the teacher's architecture; None is read from `path`. Given, a config can be compiled
        ahead of time without the teacher.
    """

    path: Annotated[str, NotEmpty(), IsPath()]
    step: NonNegativeInt | None = None
    objective: Literal["blockwise", "kl"] = "blockwise"
    dtype: Literal["float32", "bfloat16"] = "float32"
    temperature: PositiveFloat = 1.0
    ce_weight: Annotated[float, Between(0, 1)] = 0.0
    model: dict[str, Any] | ModelConfig | None = None

    def __post_init__(self):
        if self.model is not None:
            model = read_value(ModelConfig, self.model, "teacher.model")
            object.__setattr__(self, "model", model)
