"""The settings of generated text: of the sample at the end of a run, and of `hybridlm generate`."""

import dataclasses

from hybridlm.settings.reader import Invalid, require
from hybridlm.settings.text import TOKENS

MOST_TOKENS = 1_000_000  # caches for more fill the memory of one device


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """The text generated at the end of a run; tokens 0 for none."""

    prompt: str = ""
    tokens: int = 0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        try:
            self.prompt.encode("utf-8")
        except UnicodeEncodeError:
            raise Invalid("prompt", "is not valid UTF-8") from None
        require(self.tokens >= 0, "tokens", "must be 0 or more")
        require(self.temperature >= 0, "temperature", "must be 0 (greedy) or more")
        require(self.top_k is None or self.top_k >= 1, "top_k", "must be at least 1, or None")
        require(
            self.top_p is None or 0 < self.top_p <= 1, "top_p", "must lie in (0, 1], or be None"
        )


@dataclasses.dataclass(frozen=True)
class GenerateSettings(SampleConfig):
    """A continuation of a prompt: drawn as the sample of a run is, of one token or more.

    Attributes:
      prompt: how the document begins.
      tokens: tokens to generate at most, up to 1,000,000.
      temperature: divides the logits; 0 is greedy.
      top_k: draw among the k likeliest tokens; all by default.
      top_p: draw among the fewest likeliest tokens with this probability; all by default.
      seed: the same seed gives the same text.
    """

    tokens: int = dataclasses.field(default=200, metadata=TOKENS)
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        require(
            1 <= self.tokens <= MOST_TOKENS,
            "tokens",
            f"must be at least 1 and at most {MOST_TOKENS:,}, not {self.tokens}",
        )
        require(0 <= self.seed < 2**31, "seed", f"must lie in [0, 2^31), not {self.seed}")
