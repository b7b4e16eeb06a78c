"""Mixtral (arXiv 2401.04088): Mistral's block, with a mixture of experts in every layer."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import experts, parts
from hybridlm.convert.family import Family, mixers_of, norm, require_block
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.settings import ModelConfig


class Mixtral(Family):
    """Pre-norm blocks with attention, windowed or not, and experts weighed to a sum of 1."""

    architecture: ClassVar[str] = "MixtralForCausalLM"
    model_type: ClassVar[str] = "mixtral"
    models: ClassVar[str] = "Mixtral 8x7B and 8x22B"
    ignored: ClassVar[frozenset[str]] = Family.ignored | experts.TRAINING

    def settings(self, keys: Keys) -> dict[str, Any]:
        window = keys.integer("sliding_window", None)
        mixer = parts.heads(keys, kv_heads=8) | {
            "rope": parts.rope(keys, 1_000_000.0, whole=True),
            "window": window,
        }
        router = {"scores": "softmax", "normalize": True}
        mixture = experts.mixture_settings(
            keys, router, experts=8, top_k=2, hidden="intermediate_size", size=14336
        )
        layer = LayerSettings("full" if window is None else "swa", mixer, mixture, "moe")
        sizes = parts.sizes(keys, tied=False) | {"norm_eps": keys.number("rms_norm_eps", 1e-5)}
        return sizes | laid_out([layer] * keys.integer("num_hidden_layers"))

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        mixers, mixture = mixers_of(model, AttentionConfig), experts.required_mixture(model)
        return {
            **parts.size_keys(model),
            **parts.head_keys(model, mixers),
            **experts.mixture_keys(mixture, "intermediate_size", "num_local_experts"),
            "rope_parameters": parts.rope_keys(parts.required_rope(mixers)),
            "sliding_window": mixers[0].window,
        }

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        found = [r for names in parts.PRENORM.items() for r in norm(model, *names)]
        if isinstance(mixer, AttentionConfig):
            found += parts.attention_rules(model, mixer)
        if isinstance(feedforward, MoEConfig):
            found += experts.expert_rules(feedforward, "block_sparse_moe", matrices=experts.MIXTRAL)
        return found
