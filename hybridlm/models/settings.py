"""The settings of a model."""

import dataclasses
from typing import Any, Literal

from hybridlm.models import mixers as mixer_kinds
from hybridlm.models import pattern as patterns
from hybridlm.settings.reader import Invalid, require


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """The gated MLP of every block: `down(act(gate x) * up x)`."""

    hidden: int
    kind: Literal["swiglu", "geglu"] = "swiglu"

    def __post_init__(self):
        require(self.hidden >= 1, "hidden", f"must be at least 1, not {self.hidden}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only hybrid: named mixers, and a pattern that lays them out over the depth.

    Attributes:
      width: size of the residual stream.
      depth: number of blocks, prefix and suffix included.
      pattern: the repeating unit of mixer names, e.g. "swa full" or "rglru*2 swa".
      mixers: settings by mixer name; each has a `kind` and that kind's own settings.
      prefix, suffix: mixer names of layers before and after the repeated units.
      vocab_size: rows of the embedding; None takes the tokenizer's, rounded up to 64.
      block: where the norms sit (see `hybridlm.models.block`).
      logit_soft_cap: cap * tanh(logits / cap) at the head.
      z_loss: weight of the squared log-normaliser (ST-MoE, arXiv 2202.08906, eq. 5).
      embedding_scale: factor on the embedding's output; Gemma's is sqrt(width).
      init_std: standard deviation of the initial embedding; kernels start at 1 over sqrt(fan-in).
    """

    width: int
    depth: int
    pattern: str
    mixers: dict[str, Any]
    mlp: MLPConfig
    prefix: str = ""
    suffix: str = ""
    vocab_size: int | None = None
    block: Literal["prenorm", "sandwich", "parallel"] = "prenorm"
    norm_eps: float = 1e-6
    tie_embeddings: bool = True
    logit_soft_cap: float | None = None
    z_loss: float = 0.0
    embedding_scale: float = 1.0
    init_std: float = 0.02

    def __post_init__(self):
        for name in ("width", "depth"):
            require(
                getattr(self, name) >= 1, name, f"must be at least 1, not {getattr(self, name)}"
            )
        require(
            self.depth <= patterns.MAX_LAYERS,
            "depth",
            f"must be at most {patterns.MAX_LAYERS:,}, not {self.depth}",
        )
        require(self.vocab_size is None or self.vocab_size >= 2, "vocab_size", "must be at least 2")
        for name in ("norm_eps", "embedding_scale", "init_std"):
            require(getattr(self, name) > 0, name, f"must be positive, not {getattr(self, name)}")
        require(self.z_loss >= 0, "z_loss", "must be 0 or more")
        require(
            self.logit_soft_cap is None or self.logit_soft_cap > 0,
            "logit_soft_cap",
            "must be positive, or None for no cap",
        )
        require(bool(self.mixers), "mixers", "defines no mixer")
        parsed = {n: mixer_kinds.read_mixer(m, f"model.mixers.{n}") for n, m in self.mixers.items()}
        object.__setattr__(self, "mixers", parsed)
        for name, mixer in parsed.items():
            try:
                mixer.check_width(self.width)
            except Invalid as error:
                raise Invalid(f"mixers.{name}.{error.field}", str(error)) from None
        self.layout  # noqa: B018 - a bad pattern is an error of the config

    @property
    def layout(self) -> patterns.Layout:
        """The mixer names of prefix, repeating unit and suffix."""
        return patterns.parse(self.pattern, self.depth, self.prefix, self.suffix, self.mixers)

    def layer_mixers(self) -> list[tuple[str, Any]]:
        """(mixer name, mixer config) of each of the `depth` layers, bottom to top."""
        return [(name, self.mixers[name]) for name in self.layout.names]
