"""The settings of evaluations."""

import dataclasses
import pathlib

from hybridlm.settings.reader import require
from hybridlm.settings.text import TOKENS

TRUNC_LEN, SLIDING_WINDOW = 4096, 1024  # tokens; those of LongPPL's authors


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """What is set anew of positions beyond the training context; None leaves it as it was trained.

    Attributes:
      logit_scale: a: NoPE layers multiply their logits by log_a(t + a) at position t.
      rope_theta: base of RoPE in global layers.
      yarn: factor of YaRN in global layers.
    """

    logit_scale: float | None = None
    rope_theta: float | None = None
    yarn: float | None = None

    def __post_init__(self):
        for name, least in (("logit_scale", 1), ("rope_theta", 0), ("yarn", 1)):
            value = getattr(self, name)
            require(value is None or value > least, name, f"must exceed {least}, not {value}")
        require(
            self.rope_theta is None or self.yarn is None,
            "yarn",
            "and --rope_theta both stretch RoPE: give one of them",
        )


@dataclasses.dataclass(frozen=True)
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
    lengths: tuple[int, ...] = dataclasses.field(metadata=TOKENS)
    samples: int = 20
    seed: int = 0
    batch: int = 8
    trunc_len: int = dataclasses.field(default=TRUNC_LEN, metadata=TOKENS)
    sliding_window: int = dataclasses.field(default=SLIDING_WINDOW, metadata=TOKENS)
    evaluator: pathlib.Path | None = None
    squad: pathlib.Path | None = None
    hotpotqa: pathlib.Path | None = None
    recall: pathlib.Path | None = None
    pairs: int | None = None
    logit_scale: float | None = None
    rope_theta: float | None = None
    yarn: float | None = None

    def __post_init__(self):
        for name in ("tasks", "lengths"):
            values = getattr(self, name)
            once = len(values) > 0 and len(set(values)) == len(values)
            require(once, name, "needs at least one value, and each only once")
        for name, least in dict(samples=1, seed=0, batch=1, trunc_len=1, sliding_window=1).items():
            value = getattr(self, name)
            require(value >= least, name, f"must be at least {least}, not {value}")
        require(
            min(self.lengths) >= 2,
            "lengths",
            f"must be at least 2 tokens, not {min(self.lengths)}",
        )
        require(
            self.pairs is None or self.pairs >= 1,
            "pairs",
            f"must be at least 1, not {self.pairs}",
        )
        _ = self.extrapolation

    @property
    def extrapolation(self) -> Extrapolation:
        return Extrapolation(self.logit_scale, self.rope_theta, self.yarn)
