"""The settings of probes: of `hybridlm probe`, and of those that run while a model trains."""

import dataclasses
from typing import Annotated, Literal

from hybridlm.settings.bounds import AtLeast, NonNegativeInt, PositiveInt, settings
from hybridlm.settings.reader import require
from hybridlm.settings.text import TOKENS

TOP_K = 4  # retrieval heads; the paper's number (arXiv 2606.15378)


@settings
class ProbesConfig:
    """What is looked at inside the model while it trains, into `probes.jsonl`.

    Attributes:
      which: live probes by name: "heads" (both retrieval scores and the entropy of every attention
        head), "slot_share" (of Native Hybrid Attention); an empty list for none.
      interval: optimizer steps between two probings; the last step has one, too.
      samples: prompts with a needle in held-out text, at depths from 0 to 100% in turn.
      length: tokens of a prompt, its answer included; None is data.seq_len.
    """

    which: tuple[str, ...] = ()
    interval: PositiveInt = 100
    samples: PositiveInt = 8
    length: Annotated[int, AtLeast(2, none="for data.seq_len")] | None = None

    def __post_init__(self):
        require(len(set(self.which)) == len(self.which), "which", "names one twice")


@settings
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
    length: Annotated[int, AtLeast(2)] | None = dataclasses.field(default=None, metadata=TOKENS)
    samples: PositiveInt = 20
    seed: NonNegativeInt = 0
    batch: PositiveInt = 8
    top_k: PositiveInt = TOP_K
    by: Literal["mass", "copy"] = "mass"
    draws: NonNegativeInt = 5
    layers: tuple[str, ...] | None = None
    windows: tuple[PositiveInt, ...] | None = dataclasses.field(default=None, metadata=TOKENS)
    truncate: bool = False
    classified: Annotated[int, AtLeast(40)] = 200
    classes: Literal["hard", "easy"] = "hard"

    def __post_init__(self):
        require(len(set(self.probes)) == len(self.probes), "probes", "names one twice")
