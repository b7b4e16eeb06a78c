"""Qwen3 with mixtures of experts (arXiv 2505.09388): some layers may be dense."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import experts, parts
from hybridlm.convert.family import Family, mixers_of, norm, only_value, require_block
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.settings import ModelConfig


class Qwen3MoE(Family):
    """Pre-norm blocks with norms of q and k; all layers have the same window, or none."""

    architecture: ClassVar[str] = "Qwen3MoeForCausalLM"
    model_type: ClassVar[str] = "qwen3_moe"
    models: ClassVar[str] = "Qwen3, mixtures of experts"
    ignored: ClassVar[frozenset[str]] = Family.ignored | experts.TRAINING

    def settings(self, keys: Keys) -> dict[str, Any]:
        window = keys.integer("sliding_window", 4096, nullable=True)
        if not keys.flag("use_sliding_window", False):
            window = None
        keys.harmless("max_window_layers")  # the class does not read it
        keys.only("shared_expert_intermediate_size", 0, why="the class has no shared expert")
        keys.only("use_qk_norm", True, why="the class has norms of q and k")
        keys.only("qkv_bias", False, why="the class reads attention_bias")
        mixer = parts.heads(keys, kv_heads=4) | {
            "rope": parts.rope(keys, whole=True),
            "qk_norm": True,
            "bias": keys.flag("attention_bias", False),
            "window": window,
        }
        name = "full" if window is None else "swa"
        router = {"scores": "softmax", "normalize": keys.flag("norm_topk_prob", False)}
        mixture = experts.mixture_settings(
            keys, router, experts=128, top_k=8, hidden="moe_intermediate_size", size=768
        )
        feeds = experts.by_layer(keys, experts.alternating(keys, mixture["experts"]), mixture)
        layers = [LayerSettings(name, mixer, feed, label) for label, feed in feeds]
        return parts.sizes(keys, tied=False) | laid_out(layers)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        mixers, feeds = mixers_of(model, AttentionConfig), experts.Feedforwards.of(model)
        window = mixers[0].window
        found = {
            **parts.size_keys(model),
            **parts.head_keys(model, mixers),
            **feeds.dense_keys(),
            "rope_parameters": parts.rope_keys(parts.required_rope(mixers)),
            "attention_bias": only_value((x.bias for x in mixers), "bias") is True,
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "mlp_only_layers": [i for i, sparse in enumerate(feeds.sparse) if not sparse],
        }
        if feeds.mixture is None:
            return found | {"num_experts": 0}
        found |= experts.mixture_keys(feeds.mixture, "moe_intermediate_size")
        return found | {"norm_topk_prob": feeds.mixture.router.normalize}

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        found = [r for names in parts.PRENORM.items() for r in norm(model, *names)]
        if isinstance(mixer, AttentionConfig):
            found += parts.attention_rules(model, mixer)
        if isinstance(feedforward, MoEConfig):
            return found + experts.expert_rules(feedforward)
        return found + parts.gated_rules(feedforward)
