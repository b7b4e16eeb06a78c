"""The settings of evaluations."""

import dataclasses
import pathlib
from typing import Annotated

from hybridlm.settings.bounds import Above, AtLeast, NonNegativeInt, PositiveInt, settings
from hybridlm.settings.reader import require
from hybridlm.settings.text import TOKENS

TRUNC_LEN, SLIDING_WINDOW = 4096, 1024  # tokens; those of LongPPL's authors


@settings
class Extrapolation:
    """What is set anew of positions beyond the training context; None leaves it as it was trained.

    Attributes:
      logit_scale: a: NoPE layers multiply their logits by log_a(t + a) at position t.
      rope_theta: base of RoPE in global layers.
      yarn: factor of YaRN in global layers.
    """

    logit_scale: Annotated[float, Above(1)] | None = None
    rope_theta: Annotated[float, Above(0)] | None = None
    yarn: Annotated[float, Above(1)] | None = None

    def __post_init__(self):
        require(
            self.rope_theta is None or self.yarn is None,
            "yarn",
            "and --rope_theta both stretch RoPE: give one of them",
        )


@settings
class EvalSettings:
    """What is evaluated.

    Attributes:
      tasks: names with commas between; they are listed below.
      lengths: tokens, with commas between; 1k is 1024, 1M is 1024 squared.
      samples: of each task and length; of needle at each depth; of perplexity and longppl sequences.
      seed: of the samples.
      batch: sequences at once.
      trunc_len: tokens of LongPPL's short context.
      sliding_window: tokens by which LongPPL's short context advances.
      evaluator: run or model folder that finds LongPPL's key tokens; the model itself by default.
      squad: SQuAD JSON file for qa_1; our own questions by default.
      hotpotqa: HotpotQA JSON file for qa_2; our own questions by default.
      recall: folder of the recall tasks' files, NAME.jsonl.
      pairs: of mqar; a 16th of the length by default.
      logit_scale: a, beyond training: NoPE layers multiply logits by log_a(t + a) at position t.
      rope_theta: base of RoPE in global layers, beyond training.
      yarn: factor of YaRN in global layers, beyond training.
    """

    tasks: tuple[str, ...]
    lengths: tuple[Annotated[int, AtLeast(2)], ...] = dataclasses.field(metadata=TOKENS)
    samples: PositiveInt = 20
    seed: NonNegativeInt = 0
    batch: PositiveInt = 8
    trunc_len: PositiveInt = dataclasses.field(default=TRUNC_LEN, metadata=TOKENS)
    sliding_window: PositiveInt = dataclasses.field(default=SLIDING_WINDOW, metadata=TOKENS)
    evaluator: pathlib.Path | None = None
    squad: pathlib.Path | None = None
    hotpotqa: pathlib.Path | None = None
    recall: pathlib.Path | None = None
    pairs: PositiveInt | None = None
    logit_scale: Annotated[float, Above(1)] | None = None
    rope_theta: Annotated[float, Above(0)] | None = None
    yarn: Annotated[float, Above(1)] | None = None

    def __post_init__(self):
        for name in ("tasks", "lengths"):
            values = getattr(self, name)
            once = len(values) > 0 and len(set(values)) == len(values)
            require(once, name, "needs at least one value, and each only once")
        _ = self.extrapolation

    @property
    def extrapolation(self) -> Extrapolation:
        return Extrapolation(self.logit_scale, self.rope_theta, self.yarn)
