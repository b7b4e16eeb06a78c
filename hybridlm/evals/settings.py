"""The settings of evaluations."""

import dataclasses
import pathlib
from typing import Annotated, Literal

from hybridlm.settings.bounds import (
    LONGEST,
    Above,
    AtLeast,
    NonNegativeInt,
    PositiveInt,
    settings,
)
from hybridlm.settings.reader import require
from hybridlm.settings.text import TOKENS

TRUNC_LEN, SLIDING_WINDOW = 4096, 1024  # tokens; the defaults of LongPPL's authors


@settings
class Extrapolation:
    """Position settings beyond the training context; None leaves a setting as it was in training.

    Attributes:
      logit_scale: a; NoPE layers multiply their logits by log_a(t + a) at position t.
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
            "and --rope_theta both stretch RoPE: set only one of them",
        )


@settings
class EvalSettings:
    """Which evaluations to run, and how.

    Attributes:
      tasks: names separated by commas; see the list below.
      lengths: in tokens, separated by commas; 1k is 1024, 1M is 1024 squared.
      samples: samples for each task and length; for needle at each depth; for perplexity and
        longppl the number of sequences.
      seed: seed of the samples.
      batch: batch size, in sequences.
      trunc_len: tokens of LongPPL's short context.
      sliding_window: tokens by which LongPPL's short context advances.
      evaluator: run or model folder that finds LongPPL's key tokens; the model itself by default.
      squad: SQuAD JSON file for qa_1; our own questions by default.
      hotpotqa: HotpotQA JSON file for qa_2; our own questions by default.
      recall: folder of the recall tasks' files, NAME.jsonl.
      pairs: pairs of mqar; a 16th of the length by default.
      logit_scale: a; NoPE layers multiply logits by log_a(t + a) at position t (extrapolation).
      rope_theta: base of RoPE in global layers (extrapolation).
      yarn: factor of YaRN in global layers (extrapolation).
    """

    tasks: tuple[str, ...]
    lengths: tuple[Annotated[int, AtLeast(2), LONGEST], ...] = dataclasses.field(metadata=TOKENS)
    samples: PositiveInt = 20
    seed: NonNegativeInt = 0
    batch: PositiveInt = 8
    trunc_len: Annotated[PositiveInt, LONGEST] = dataclasses.field(
        default=TRUNC_LEN, metadata=TOKENS
    )
    sliding_window: Annotated[PositiveInt, LONGEST] = dataclasses.field(
        default=SLIDING_WINDOW, metadata=TOKENS
    )
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


@settings
class HarnessSettings:
    """Which tasks of lm-evaluation-harness to run on a run's model, and how.

    Attributes:
      workdir: folder of a run, or a model folder.
      tasks: names of the harness's tasks, separated by commas.
      step: step of the checkpoint; the newest by default.
      weights: the parameters of the step, or their moving average (train.ema_decay).
      limit: samples of each task; all by default.
      num_fewshot: examples in each prompt; the task's own number by default.
      batch: batch size, in sequences.
      max_length: tokens of prompt and answer; the training length by default.
      out: JSON file for the results.
    """

    workdir: pathlib.Path
    tasks: tuple[str, ...]
    step: NonNegativeInt | None = None
    weights: Literal["raw", "ema"] = "raw"
    limit: PositiveInt | None = None
    num_fewshot: NonNegativeInt | None = None
    batch: PositiveInt = 8
    max_length: Annotated[int, AtLeast(2), LONGEST] | None = dataclasses.field(
        default=None, metadata=TOKENS
    )
    out: pathlib.Path | None = None
