"""The settings of the text that a run generates at its end."""

import dataclasses

from hybridlm.settings.reader import Invalid, require


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
