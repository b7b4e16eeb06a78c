"""The settings of probes: of `hybridlm probe`, and of those that run while a model trains."""

import dataclasses
from typing import Literal

from hybridlm.settings.reader import require
from hybridlm.settings.text import TOKENS

TOP_K = 4  # retrieval heads; the paper's number (arXiv 2606.15378)


@dataclasses.dataclass(frozen=True)
class ProbesConfig:
    """What is looked at inside the model while it trains, into `probes.jsonl`.

    Attributes:
      which: "heads" (both retrieval scores and the entropy of every attention head) and
        "slot_share" (of Native Hybrid Attention); an empty list for nothing.
      interval: optimizer steps between two; the last step has one too.
      samples: needles in held-out text, at depths from 0 to 100% in turn.
      length: tokens of each, its answer included; None is data.seq_len.
    """

    which: tuple[Literal["heads", "slot_share"], ...] = ()
    interval: int = 100
    samples: int = 8
    length: int | None = None

    def __post_init__(self):
        require(len(set(self.which)) == len(self.which), "which", "names one twice")
        require(self.interval >= 1, "interval", f"must be at least 1, not {self.interval}")
        require(self.samples >= 1, "samples", f"must be at least 1, not {self.samples}")
        require(
            self.length is None or self.length >= 2,
            "length",
            f"must be at least 2, not {self.length}",
        )


@dataclasses.dataclass(frozen=True)
class ProbeSettings:
    """What is probed.

    Attributes:
      probes: names with commas between; they are listed below.
      length: tokens of a prompt with its answer, and of a text; the length of training by default.
      samples: prompts (at depths from 0 to 100% in turn), and texts of gradient_influence.
      seed: of the prompts.
      batch: sequences at once.
      top_k: how many retrieval heads of the newest checkpoint to follow and mask.
      by: the score that chooses them.
      draws: random sets of as many heads to mask.
      layers: of receptive_field, to restrict: mixer names or layer numbers, with commas between;
        each mixer in turn by default.
      windows: of receptive_field, in tokens, with commas between; a 16th and a quarter of the
        length by default.
      truncate: restrict every layer by its context, also those that have a window.
      classified: prompts of layer_probing.
      classes: of layer_probing: eight values that differ in the last digit, or everywhere.
    """

    probes: tuple[str, ...]
    length: int | None = dataclasses.field(default=None, metadata=TOKENS)
    samples: int = 20
    seed: int = 0
    batch: int = 8
    top_k: int = TOP_K
    by: Literal["mass", "copy"] = "mass"
    draws: int = 5
    layers: tuple[str, ...] | None = None
    windows: tuple[int, ...] | None = dataclasses.field(default=None, metadata=TOKENS)
    truncate: bool = False
    classified: int = 200
    classes: Literal["hard", "easy"] = "hard"

    def __post_init__(self):
        require(len(set(self.probes)) == len(self.probes), "probes", "names one twice")
        least = dict(length=2, samples=1, seed=0, batch=1, top_k=1, draws=0, classified=40)
        for name, bound in least.items():
            value = getattr(self, name)
            require(value is None or value >= bound, name, f"must be at least {bound}, not {value}")
        require(
            self.windows is None or min(self.windows) >= 1,
            "windows",
            f"must be at least 1 token, not {min(self.windows or (0,))}",
        )
