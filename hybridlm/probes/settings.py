"""The settings of `hybridlm probe`, and of the probes that run during training."""

import dataclasses
from typing import Annotated, Literal

from hybridlm.settings.bounds import LONGEST, AtLeast, NonNegativeInt, PositiveInt, settings
from hybridlm.settings.reader import require
from hybridlm.settings.text import TOKENS

TOP_K = 4  # retrieval heads; the paper's number (arXiv 2606.15378)


@settings
class ProbesConfig:
    """Probes that run during training and write `probes.jsonl`.

    Attributes:
      which: live probes by name: "heads" (both retrieval scores and the entropy of every attention
        head), "slot_share" (of Native Hybrid Attention); an empty list for none.
      interval: optimizer steps between two probings; the last step is probed too.
      samples: prompts with a needle in held-out text; their depths cycle from 0 to 100%.
      length: tokens of a prompt, its answer included; None means data.seq_len.
    """

    which: tuple[str, ...] = ()
    interval: PositiveInt = 100
    samples: PositiveInt = 8
    length: Annotated[int, AtLeast(2, none="for data.seq_len"), LONGEST] | None = None

    def __post_init__(self):
        require(len(set(self.which)) == len(self.which), "which", "names one twice")


@settings
class ProbeSettings:
    """Which probes to run, and how.

    Attributes:
      probes: names separated by commas; see the list below.
      length: tokens of a prompt with its answer, and of a text; the training length by default.
      samples: prompts (their depths cycle from 0 to 100%), and texts of gradient_influence.
      seed: seed of the prompts.
      batch: batch size, in sequences.
      top_k: number of the newest checkpoint's retrieval heads to measure and mask.
      by: the score that selects the retrieval heads.
      draws: number of random sets of top_k heads to mask.
      layers: layers that receptive_field restricts: mixer names or layer numbers, separated by
        commas; each mixer in turn by default.
      windows: windows of receptive_field in tokens, separated by commas; a 16th and a quarter of
        the length by default.
      truncate: receptive_field restricts every layer by its context, also layers with a window.
      classified: prompts of layer_probing.
      classes: values of layer_probing: eight that differ in the last digit (hard), or in all
        digits.
    """

    probes: tuple[str, ...]
    length: Annotated[int, AtLeast(2), LONGEST] | None = dataclasses.field(
        default=None, metadata=TOKENS
    )
    samples: PositiveInt = 20
    seed: NonNegativeInt = 0
    batch: PositiveInt = 8
    top_k: PositiveInt = TOP_K
    by: Literal["mass", "copy"] = "mass"
    draws: NonNegativeInt = 5
    layers: tuple[str, ...] | None = None
    windows: tuple[Annotated[PositiveInt, LONGEST], ...] | None = dataclasses.field(
        default=None, metadata=TOKENS
    )
    truncate: bool = False
    classified: Annotated[int, AtLeast(40)] = 200
    classes: Literal["hard", "easy"] = "hard"

    def __post_init__(self):
        require(len(set(self.probes)) == len(self.probes), "probes", "names one twice")
