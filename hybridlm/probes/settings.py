"""The settings of the probes that look inside a model while it trains."""

import dataclasses
from typing import Literal

from hybridlm.settings.reader import require


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
