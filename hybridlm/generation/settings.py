"""The settings of the text that a run generates at its end."""

from typing import Annotated

from hybridlm.settings.bounds import AtLeast, Between, NonNegativeInt, PositiveInt, settings
from hybridlm.settings.reader import Invalid


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
    tokens: NonNegativeInt = 0
    temperature: Annotated[float, AtLeast(0, note="greedy")] = 1.0
    top_k: PositiveInt | None = None
    top_p: Annotated[float, Between(0, 1, low_open=True)] | None = None

    def __post_init__(self):
        try:
            self.prompt.encode("utf-8")
        except UnicodeEncodeError:
            raise Invalid("prompt", "is not valid UTF-8") from None
