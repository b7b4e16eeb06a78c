"""GLM-4.5 and 4.6 (arXiv 2508.06471) and Solar Open: grouped-query attention, experts as DeepSeek-V3's."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import experts, grouped_experts, parts
from hybridlm.convert.family import (
    Family,
    Inexpressible,
    mixers_of,
    norm,
    only_value,
    require_block,
)
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.settings import ModelConfig


class Glm4MoE(Family):
    """Pre-norm blocks with partial RoPE; the lowest layers are dense, the others have experts."""

    architecture: ClassVar[str] = "Glm4MoeForCausalLM"
    model_type: ClassVar[str] = "glm4_moe"
    models: ClassVar[str] = "GLM-4.5, GLM-4.5 Air, GLM-4.6"
    ignored: ClassVar[frozenset[str]] = Family.ignored | experts.TRAINING
    #: The layer that predicts two tokens ahead, of GLM-4.5 Air and of GLM-4.5.
    optional: ClassVar[tuple[str, ...]] = (
        *Family.optional,
        "model.layers.46.*",
        "model.layers.92.*",
    )
    head_dim: ClassVar[int | None] = None
    hidden: ClassVar[int] = 1408

    def settings(self, keys: Keys) -> dict[str, Any]:
        depth = keys.integer("num_hidden_layers")
        mixer = parts.heads(keys, head_dim=self.head_dim, kv_heads=8)
        mixer |= {
            "rope": self.rope(keys, mixer["head_dim"]),
            "bias": "qkv" if keys.flag("attention_bias", False) else False,
            "qk_norm": self.qk_norm(keys),
        }
        dense = self.dense(keys)
        mixture = grouped_experts.mixture_settings(
            keys,
            grouped_experts.DEEPSEEK,
            experts=128,
            hidden=self.hidden,
            scale=1.0,
            groups=1,
            top_groups=1,
        )
        feeds = experts.by_layer(keys, [i >= dense for i in range(depth)], mixture)
        layers = [LayerSettings("full", mixer, feed, label) for label, feed in feeds]
        sizes = parts.sizes(keys, tied=False) | {"norm_eps": keys.number("rms_norm_eps", 1e-5)}
        return sizes | laid_out(layers)

    def rope(self, keys: Keys, size: int) -> dict[str, Any]:
        """The settings of RoPE of heads of this size."""
        return parts.rotated_down(parts.rope(keys, fraction=0.5), size)

    def qk_norm(self, keys: Keys) -> bool:
        """Whether q and k have norms."""
        return keys.flag("use_qk_norm", False)

    def dense(self, keys: Keys) -> int:
        """The number of dense layers."""
        keys.harmless("num_nextn_predict_layers", "num_mtp_layers")
        return keys.integer("first_k_dense_replace", 1)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        mixers, feeds = mixers_of(model, AttentionConfig), experts.Feedforwards.of(model)
        rope = parts.required_rope(mixers)
        return {
            **parts.size_keys(model),
            **parts.head_keys(model, mixers),
            **grouped_experts.feedforward_keys(model, grouped_experts.DEEPSEEK),
            **self.own_keys(mixers, feeds.dense_below),
            # Written even where it is 1: the class's default may be another.
            "rope_parameters": {"partial_rotary_factor": rope.fraction, **parts.rope_keys(rope)},
            "attention_bias": only_value((x.bias for x in mixers), "bias") == "qkv",
        }

    def own_keys(self, mixers: list[AttentionConfig], dense: int) -> dict[str, Any]:
        """The inverse of `qk_norm` and `dense`."""
        return {
            "use_qk_norm": only_value((x.qk_norm for x in mixers), "qk_norm") is True,
            "first_k_dense_replace": dense,
        }

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        found = [r for names in parts.PRENORM.items() for r in norm(model, *names)]
        if isinstance(mixer, AttentionConfig):
            found += parts.attention_rules(model, mixer)
        if isinstance(feedforward, MoEConfig):
            return found + experts.expert_rules(feedforward, shared="shared_experts")
        return found + parts.gated_rules(feedforward)


class SolarOpen(Glm4MoE):
    """As GLM-4.5 without norms of q and k, with whole heads rotated, and experts in every layer."""

    architecture: ClassVar[str] = "SolarOpenForCausalLM"
    model_type: ClassVar[str] = "solar_open"
    models: ClassVar[str] = "Solar Open 100B"
    optional: ClassVar[tuple[str, ...]] = Family.optional
    head_dim: ClassVar[int | None] = 128
    hidden: ClassVar[int] = 1280

    def rope(self, keys: Keys, size: int) -> dict[str, Any]:
        return parts.rope(keys, 1_000_000.0, whole=True)

    def qk_norm(self, keys: Keys) -> bool:
        keys.only("use_qk_norm", False, why="the class has no norms of q and k")
        return False

    def dense(self, keys: Keys) -> int:
        keys.only("first_k_dense_replace", 0, why="the class has experts in every layer")
        keys.harmless("num_nextn_predict_layers", "num_mtp_layers")
        return 0

    def own_keys(self, mixers: list[AttentionConfig], dense: int) -> dict[str, Any]:
        if dense:
            raise Inexpressible("layer 0 has no mixture of experts")
        return {}
