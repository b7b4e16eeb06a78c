"""The settings of a model."""

from typing import Annotated, Any, Literal

from hybridlm.models import mixers as mixer_kinds
from hybridlm.models import pattern as patterns
from hybridlm.settings.bounds import (
    Above,
    AtLeast,
    AtMost,
    Epsilon,
    NonNegativeFloat,
    NotEmpty,
    PositiveFloat,
    PositiveInt,
    settings,
)
from hybridlm.settings.reader import within


@settings
class MLPConfig:
    """The gated MLP of every block: `down(act(gate x) * up x)` (arXiv 2002.05202).

    Attributes:
      hidden: size of the hidden layer: of the gate, and of what it multiplies.
      kind: the gate's activation: SiLU with "swiglu", GELU (its tanh approximation) with "geglu".
    """

    hidden: PositiveInt
    kind: Literal["swiglu", "geglu"] = "swiglu"


@settings
class ModelConfig:
    """A decoder-only hybrid: named mixers, and a pattern that lays them out over the depth.

    Attributes:
      width: size of the residual stream.
      depth: number of blocks, prefix and suffix included.
      pattern: the repeating unit of mixer names, e.g. "swa full" or "rglru*2 swa".
      mixers: settings by mixer name; each has a `kind` and that kind's own settings.
      mlp: the MLP's settings, the same in every block.
      prefix: mixer names of the layers before the repeated units.
      suffix: mixer names of the layers after the repeated units.
      vocab_size: rows of the embedding; None takes the tokenizer's, rounded up to 64.
      block: where the norms sit (see `hybridlm.models.block`).
      norm_eps: added to the mean square under the root of every RMSNorm (arXiv 1910.07467);
        smaller numbers than the bound are 0 in float32.
      tie_embeddings: True uses the embedding as the head, too (arXiv 1608.05859); False gives the
        head a matrix of its own.
      logit_soft_cap: cap * tanh(logits / cap) at the head.
      z_loss: weight of the squared log-normaliser (ST-MoE, arXiv 2202.08906, eq. 5).
      embedding_scale: factor on the embedding's output; Gemma's is sqrt(width).
      init_std: standard deviation of the initial embedding; kernels start at 1 over sqrt(fan-in).
    """

    width: PositiveInt
    depth: Annotated[PositiveInt, AtMost(patterns.MAX_LAYERS)]
    pattern: str
    mixers: Annotated[dict[str, Any], NotEmpty("defines no mixer")]
    mlp: MLPConfig
    prefix: str = ""
    suffix: str = ""
    vocab_size: Annotated[int, AtLeast(2, none="to take the tokenizer's")] | None = None
    block: Literal["prenorm", "sandwich", "parallel"] = "prenorm"
    norm_eps: Epsilon = 1e-6
    tie_embeddings: bool = True
    logit_soft_cap: Annotated[float, Above(0, none="for no cap")] | None = None
    z_loss: NonNegativeFloat = 0.0
    embedding_scale: PositiveFloat = 1.0
    init_std: PositiveFloat = 0.02

    def __post_init__(self):
        parsed = {n: mixer_kinds.read_mixer(m, f"model.mixers.{n}") for n, m in self.mixers.items()}
        object.__setattr__(self, "mixers", parsed)
        for name, mixer in parsed.items():
            with within(f"mixers.{name}"):
                mixer.check_width(self.width)
        self.layout  # noqa: B018 - a bad pattern is an error of the config

    @property
    def layout(self) -> patterns.Layout:
        """The mixer names of prefix, repeating unit and suffix."""
        return patterns.parse(self.pattern, self.depth, self.prefix, self.suffix, self.mixers)

    def layer_mixers(self) -> list[tuple[str, Any]]:
        """(mixer name, mixer config) of each of the `depth` layers, bottom to top."""
        return [(name, self.mixers[name]) for name in self.layout.names]
