"""Gemma 2 (arXiv 2408.00118) and the text of Gemma 3 (arXiv 2503.19786)."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import parts
from hybridlm.convert.family import Family, mixers_of, only_value, require_block
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import laid_out
from hybridlm.convert.table import Rule
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.settings import ModelConfig


class Gemma2(Family):
    """Sandwich norms with a unit offset, soft caps, and windows in every other layer."""

    architecture: ClassVar[str] = "Gemma2ForCausalLM"
    model_type: ClassVar[str] = "gemma2"
    models: ClassVar[str] = "Gemma 2"
    logit_cap: ClassVar[float | None] = 30.0
    pattern: ClassVar[int] = 2

    def settings(self, keys: Keys) -> dict[str, Any]:
        scalar = keys.integer("query_pre_attn_scalar", 256)
        if scalar <= 0:
            keys.refuse("query_pre_attn_scalar", f"must be positive, not {scalar}")
        mixer = parts.heads(keys, head_dim=256, kv_heads=4) | {
            "bias": keys.flag("attention_bias", False),
            "scale": scalar**-0.5,
            **self.own(keys),
        }
        keys.only("use_bidirectional_attention", False)
        ropes = self.ropes(keys)
        window = parts.required_window(keys, 4096)
        mixers = parts.full_and_sliding(mixer, ropes, window)
        types = parts.types_or_pattern(keys, self.pattern)
        feed = parts.gated(keys, activation="hidden_activation", default="gelu_pytorch_tanh")
        return {
            **parts.sizes(keys, tied=True),
            **laid_out(parts.by_type(types, mixers, feed)),
            "block": "sandwich",
            "norm": "rmsnorm_unit_offset",
            "embedding_scale": keys.integer("hidden_size") ** 0.5,
            "logit_soft_cap": keys.number("final_logit_softcapping", self.logit_cap, nullable=True),
        }

    def ropes(self, keys: Keys) -> dict[str, dict[str, Any]]:
        """RoPE by type of layer."""
        rope = parts.rope(keys, whole=True)
        keys.harmless("hidden_act")
        return {parts.FULL: rope, parts.SLIDING: rope}

    def own(self, keys: Keys) -> dict[str, Any]:
        """The settings of attention that Gemma 2 and 3 do not share."""
        return {"soft_cap": keys.number("attn_logit_softcapping", 50.0, nullable=True)}

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "sandwich")
        mixers = mixers_of(model, AttentionConfig)
        size = mixers[0].head_size(model.width)
        scale = only_value((x.scale or size**-0.5 for x in mixers), "scale")
        return {
            **parts.size_keys(model),
            **parts.head_keys(model, mixers),
            **parts.gated_keys(model, activation="hidden_activation"),
            "attention_bias": only_value((x.bias for x in mixers), "bias") is True,
            "query_pre_attn_scalar": max(round(scale**-2), 1),
            "final_logit_softcapping": model.logit_soft_cap,
            **self.own_keys(mixers),
        }

    def own_keys(self, mixers: list[AttentionConfig]) -> dict[str, Any]:
        """The keys of windows and RoPE."""
        return {
            "attn_logit_softcapping": only_value((x.soft_cap for x in mixers), "soft_cap"),
            "sliding_window": parts.one_window(mixers) or parts.DEFAULT_WINDOW,
            "layer_types": parts.window_types(mixers),
            "rope_parameters": parts.rope_keys(parts.required_rope(mixers)),
        }

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        return parts.block_rules(model, mixer, feedforward, parts.SANDWICH)


class Gemma3(Gemma2):
    """As Gemma 2 without caps, with norms of q and k, and RoPE of its own in each kind of layer."""

    architecture: ClassVar[str] = "Gemma3ForCausalLM"
    model_type: ClassVar[str] = "gemma3_text"
    models: ClassVar[str] = "Gemma 3, text"
    logit_cap: ClassVar[float | None] = None
    pattern: ClassVar[int] = 6

    def ropes(self, keys: Keys) -> dict[str, dict[str, Any]]:
        return parts.rope_by_type(keys, 1_000_000.0, 10_000.0, "rope_local_base_freq")

    def own(self, keys: Keys) -> dict[str, Any]:
        keys.harmless("attn_logit_softcapping")  # the class has the key and does not read it
        return {"qk_norm": "unit_offset"}

    def own_keys(self, mixers: list[AttentionConfig]) -> dict[str, Any]:
        return parts.type_keys(mixers)
