"""The settings of the probes that look inside a model while it trains."""

from typing import Annotated, Literal

from hybridlm.settings.bounds import AtLeast, PositiveInt, settings
from hybridlm.settings.reader import require


@settings
class ProbesConfig:
    """What is looked at inside the model while it trains, into `probes.jsonl`.

    Attributes:
      which: "heads" (both retrieval scores and the entropy of every attention head) and
        "slot_share" (of Native Hybrid Attention); an empty list for nothing.
      interval: optimizer steps between two probings; the last step has one, too.
      samples: prompts with a needle in held-out text, at depths from 0 to 100% in turn.
      length: tokens of a prompt, its answer included; None is data.seq_len.
    """

    which: tuple[Literal["heads", "slot_share"], ...] = ()
    interval: PositiveInt = 100
    samples: PositiveInt = 8
    length: Annotated[int, AtLeast(2, none="for data.seq_len")] | None = None

    def __post_init__(self):
        require(len(set(self.which)) == len(self.which), "which", "names one twice")
