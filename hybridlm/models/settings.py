"""The settings of a model."""

import dataclasses
from typing import Annotated, Any, Literal

from hybridlm.models import mixers as mixer_kinds
from hybridlm.models import pattern as patterns
from hybridlm.models.feedforward import FeedForwardConfig, read_feedforward
from hybridlm.models.feedforward.absent import NoFeedForwardConfig
from hybridlm.models.joining import BlockConfig, BlockName
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.absent import NoMixerConfig
from hybridlm.models.norms import OTHER_NORM_NAMES
from hybridlm.models.per_layer import PerLayerConfig
from hybridlm.models.streams import CHANNEL, StreamsConfig
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
from hybridlm.settings.reader import other_names, read_value, require, within


@settings
class ModelConfig:
    """A decoder-only hybrid: named mixers, and a pattern that lays them out over the depth.

    Attributes:
      width: size of the residual stream.
      depth: number of blocks, prefix and suffix included.
      pattern: the repeating unit of mixer names, e.g. "swa full" or "rglru*2 swa". An item
        "MIXER+FEEDFORWARD" names its feed-forward too; "none" in either place leaves it out.
      mixers: settings by mixer name; each has a `kind` and that kind's own settings.
      mlp: settings of the feed-forward of layers that name none; None for layers without one.
      prefix: mixer names of the layers before the repeated units.
      suffix: mixer names of the layers after the repeated units.
      vocab_size: rows of the embedding; None takes the tokenizer's, rounded up to 64.
      block: where the norms sit: before each half of a layer ("prenorm"), after it ("postnorm"),
        both ("sandwich"; "scaled_sandwich" multiplies the layer's output by a scalar parameter, Gemma
        4), or one norm before both halves, which run in parallel ("parallel"). With "normed" each
        half reads the normed stream and is added to it, too (MiniMax-01).
      norm: norm of the residual stream: RMSNorm, with a scale that starts at 1 or an offset to 1
        (Gemma), or LayerNorm, with or without a bias.
      norm_eps: added to the mean square (LayerNorm: the variance) under the root of every norm;
        smaller numbers than the bound are 0 in float32.
      tie_embeddings: True uses the embedding as the head (arXiv 1608.05859); False gives the head a
        matrix of its own.
      logit_soft_cap: the head's logits become cap * tanh(logits / cap).
      z_loss: weight of the squared log-normaliser (ST-MoE, arXiv 2202.08906, eq. 5).
      embedding_scale: factor on the embedding's output; Gemma's is sqrt(width).
      residual_scale: factor on what each half of a layer adds to the residual stream (Granite).
      feedforwards: settings by name of the feed-forwards that the pattern names; each has a `kind`
        and that kind's own settings.
      logit_scale: factor on the head's logits, before a soft cap (Cohere, arXiv 2405.15032).
      init_std: standard deviation of the initial embedding; kernels start at 1 over sqrt(fan-in).
      blocks: by mixer name, where the norms of its layers sit if not where `block` says (OLMo Hybrid
        has norms before Gated DeltaNet and after attention), and factors in their sums (MiniMax-01).
      per_layer: a vector of each token for each layer, which adds it after its feed-forward (Gemma
        3n, Gemma 4); None for none.
      streams: several residual streams, mixed anew for each token (hyper-connections, GLM-5.3-Flash);
        with block prenorm. None for one.
    """

    width: PositiveInt
    depth: Annotated[PositiveInt, AtMost(patterns.MAX_LAYERS)]
    pattern: str
    mixers: Annotated[dict[str, Any], NotEmpty("defines no mixer")]
    mlp: Any
    prefix: str = ""
    suffix: str = ""
    vocab_size: Annotated[int, AtLeast(2, none="to take the tokenizer's")] | None = None
    block: BlockName = "prenorm"
    norm: Literal["rmsnorm", "rmsnorm_unit_offset", "layernorm", "layernorm_no_bias"] = (
        dataclasses.field(default="rmsnorm", metadata=other_names("norm", OTHER_NORM_NAMES))
    )
    norm_eps: Epsilon = 1e-6
    tie_embeddings: bool = True
    logit_soft_cap: Annotated[float, Above(0, none="for no cap")] | None = None
    z_loss: NonNegativeFloat = 0.0
    embedding_scale: PositiveFloat = 1.0
    init_std: PositiveFloat = 0.02
    residual_scale: PositiveFloat = 1.0
    feedforwards: dict[str, Any] = dataclasses.field(default_factory=dict)
    logit_scale: PositiveFloat = 1.0
    blocks: dict[str, BlockConfig] = dataclasses.field(default_factory=dict)
    per_layer: PerLayerConfig | None = None
    streams: StreamsConfig | None = None

    def __post_init__(self):
        parsed = {n: mixer_kinds.read_mixer(m, f"model.mixers.{n}") for n, m in self.mixers.items()}
        object.__setattr__(self, "mixers", parsed)
        for name, mixer in parsed.items():
            with within(f"mixers.{name}"):
                mixer.check_width(self.width)
        mlp = None if self.mlp is None else read_feedforward(self.mlp, "model.mlp")
        object.__setattr__(self, "mlp", mlp)
        named = {
            name: read_feedforward(f, f"model.feedforwards.{name}")
            for name, f in self.feedforwards.items()
        }
        object.__setattr__(self, "feedforwards", named)
        for key in ("mixers", "feedforwards"):
            require(
                patterns.NONE not in getattr(self, key),
                f"{key}.{patterns.NONE}",
                "is what a pattern writes for a layer without one: use another name",
            )
        for name in self.blocks:
            require(
                name in parsed,
                f"blocks.{name}",
                f"is of no mixer: it may be of {', '.join(parsed)}",
            )
        joins = {n: read_value(BlockConfig, b, f"model.blocks.{n}") for n, b in self.blocks.items()}
        object.__setattr__(self, "blocks", joins)
        inputs = read_value(PerLayerConfig | None, self.per_layer, "model.per_layer")
        object.__setattr__(self, "per_layer", inputs)
        streams = read_value(StreamsConfig | None, self.streams, "model.streams")
        object.__setattr__(self, "streams", streams)
        self.cross_layer()  # raises for a bad pattern and for cross-layer arrays that disagree
        require(
            self.streams is None or (self.per_layer is None and self.residual_scale == 1),
            "streams",
            "goes without per_layer and residual_scale",
        )
        self._check_caches()
        self._check_blocks()
        rows = None if self.per_layer is None else self.per_layer.rows
        require(
            rows is None or self.vocab_size is None or rows >= self.vocab_size,
            "per_layer.rows",
            f"is {rows}: it must be at least vocab_size, {self.vocab_size}",
        )

    @property
    def layout(self) -> patterns.Layout:
        """The layers of prefix, repeating unit and suffix."""
        return patterns.parse(
            self.pattern, self.depth, self.prefix, self.suffix, self.mixers, self.feedforwards
        )

    def mixer_of(self, layer: patterns.Layer) -> MixerConfig:
        """The settings of a layer's mixer."""
        return NoMixerConfig() if layer.mixer == patterns.NONE else self.mixers[layer.mixer]

    def feedforward_of(self, layer: patterns.Layer) -> FeedForwardConfig:
        """The settings of a layer's feed-forward."""
        if layer.feedforward is None:
            return NoFeedForwardConfig() if self.mlp is None else self.mlp
        if layer.feedforward == patterns.NONE:
            return NoFeedForwardConfig()
        return self.feedforwards[layer.feedforward]

    def block_of(self, layer: patterns.Layer) -> BlockConfig:
        """How a layer's halves join the residual stream."""
        return self.blocks.get(layer.mixer, BlockConfig(self.block))

    def layer_mixers(self) -> list[tuple[str, MixerConfig]]:
        """(mixer name, mixer settings) of each of the `depth` layers, bottom to top."""
        return [(layer.mixer, self.mixer_of(layer)) for layer in self.layout.layers]

    def layer_feedforwards(self) -> list[FeedForwardConfig]:
        """The feed-forward's settings of each of the `depth` layers, bottom to top."""
        return [self.feedforward_of(layer) for layer in self.layout.layers]

    @property
    def has_loss(self) -> bool:
        """Whether any layer adds its own loss to the training objective."""
        halves = (*(mixer for _, mixer in self.layer_mixers()), *self.layer_feedforwards())
        return any(half.has_loss for half in halves)

    def caches_read(self) -> list[int | None]:
        """Of each layer, bottom to top, the layer below whose cache it reads; None for its own."""
        last: dict[str, int] = {}
        found = []
        for index, (_, mixer) in enumerate(self.layer_mixers()):
            found.append(None if mixer.reads_cache is None else last.get(mixer.reads_cache, -1))
            if mixer.hands_on is not None:
                last[mixer.hands_on] = index
        return found

    def _check_caches(self) -> None:
        """Raises `Invalid` where a layer reads a cache that no layer below has, or one too short."""
        layers, far = self.layer_mixers(), 2**31
        for name, mixer in self.mixers.items():
            for holder in mixer.holds_mixers:
                for branch in getattr(mixer, holder).values():
                    require(
                        branch.hands_on is None and branch.reads_cache is None,
                        f"mixers.{name}",
                        f"has a branch with {' or '.join(branch.cache_names)}, which are of whole layers",
                    )
        reach = {}
        for (name, mixer), below in zip(layers, self.caches_read(), strict=True):
            if mixer.hands_on is not None:
                first, keys = reach.setdefault(mixer.hands_on, (name, mixer.reach(far)))
                require(
                    mixer.reach(far) == keys,
                    f"mixers.{name}",
                    f"gives {mixer.hands_on!r} other tokens than mixers.{first}: use another name",
                )
            if below is None:
                continue
            key = f"mixers.{name}"
            wanted = f"reads {mixer.reads_cache!r}"
            given, _ = mixer.cache_names
            require(below >= 0, key, f"{wanted}, and no layer below gives it ({given})")
            lower, giver = layers[below]
            require(
                mixer.cache_kind == giver.cache_kind,
                key,
                f"{wanted} of mixers.{lower}, whose kind or pool is another",
            )
            require(
                mixer.reach(far) <= giver.reach(far),
                key,
                f"{wanted} of mixers.{lower}, whose window or chunk is shorter than its own",
            )

    def _check_blocks(self) -> None:
        """Raises `Invalid` where a block does not go with its feed-forward, or with streams."""
        plain = BlockConfig("prenorm")
        for layer in self.layout.layers:
            require(
                self.streams is None or self.block_of(layer) == plain,
                "streams",
                "goes with block prenorm, without factors in the sums",
            )
            require(
                self.streams is None or not self.feedforward_of(layer).norms_input,
                "streams",
                f"does not go with {self.feedforward_of(layer).kind_name}",
            )
            feedforward, norms = self.feedforward_of(layer), self.block_of(layer).norms
            require(
                not feedforward.norms_input or norms in ("prenorm", "sandwich", "scaled_sandwich"),
                "block",
                f"is {norms!r}, and {feedforward.kind_name} norms the residual stream itself: use"
                " prenorm, sandwich or scaled_sandwich",
            )

    def cross_layer(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays that layers pass to later layers: see `MixerConfig.cross_layer`."""
        found: dict[str, tuple[int, ...]] = {}
        if self.streams is not None:
            found[CHANNEL] = (self.streams.count, self.width)
        for name in dict.fromkeys(layer.mixer for layer in self.layout.layers):
            if name == patterns.NONE:
                continue
            for channel, shape in self.mixers[name].cross_layer(self.width, self.depth).items():
                require(
                    found.setdefault(channel, shape) == shape,
                    f"mixers.{name}",
                    f"gives the array {channel!r} the shape {shape}, and other layers give it"
                    f" {found[channel]}",
                )
        return found
