"""The settings of generated text: of the sample at the end of a run, and of `hybridlm generate`."""

import dataclasses
from typing import Annotated

from hybridlm.settings.bounds import AtLeast, AtMost, Between, PositiveInt, settings
from hybridlm.settings.reader import Invalid
from hybridlm.settings.text import TOKENS

MOST_TOKENS = 1_000_000  # caches for more fill the memory of one device


@settings
class SampleConfig:
    """The text generated at the end of a run.

    Attributes:
      prompt: the text that is continued; an empty one is the start of a document.
      tokens: how many tokens are generated; 0 for none.
      temperature: the logits are divided by it; 0 always takes the likeliest token (greedy).
      top_k: sample from the k likeliest tokens only; None for all.
      top_p: sample from the fewest likeliest tokens that have this probability together, after
        top_k (nucleus sampling, arXiv 1904.09751); None for all.
    """

    prompt: str = ""
    tokens: Annotated[int, AtLeast(0), AtMost(MOST_TOKENS)] = 0
    temperature: Annotated[float, AtLeast(0, note="greedy")] = 1.0
    top_k: PositiveInt | None = None
    top_p: Annotated[float, Between(0, 1, low_open=True)] | None = None

    def __post_init__(self):
        try:
            self.prompt.encode("utf-8")
        except UnicodeEncodeError:
            raise Invalid("prompt", "is not valid UTF-8") from None


@settings
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

    tokens: Annotated[int, AtLeast(1), AtMost(MOST_TOKENS)] = dataclasses.field(
        default=200, metadata=TOKENS
    )
    seed: Annotated[int, Between(0, 2**31, high_open=True)] = 0
