"""Cohere2 (Command R7B and A): parallel blocks, LayerNorm, positions in windowed layers only."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import parts
from hybridlm.convert.family import Family, mixers_of, norm, only_value, require_block
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import laid_out
from hybridlm.convert.table import Rule
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.settings import ModelConfig


class Cohere2(Family):
    """One norm before both halves; windowed layers rotate neighbours, full ones have no positions."""

    architecture: ClassVar[str] = "Cohere2ForCausalLM"
    model_type: ClassVar[str] = "cohere2"
    models: ClassVar[str] = "Command R7B, Command A, Tiny Aya"

    def settings(self, keys: Keys) -> dict[str, Any]:
        mixer = parts.heads(keys) | {"bias": keys.flag("attention_bias", False)}
        rope = parts.rope(keys, whole=True)
        window = parts.required_window(keys, 4096)
        types = parts.types_or_pattern(keys, 4)
        mixers = {
            parts.FULL: ("nope", mixer | {"rope": None}),
            parts.SLIDING: ("swa", mixer | {"rope": rope, "window": window}),
        }
        # Of the class of Command R, which this one keeps in its files and does not read.
        keys.only("use_qk_norm", False)
        keys.harmless("order_of_interleaved_layers", "position_embedding_type", "rotary_pct")
        keys.harmless("use_embedding_sharing", "use_gated_activation", "use_parallel_block")
        keys.harmless("use_parallel_embedding", "layer_switch")
        return {
            **parts.sizes(keys, tied=True),
            **laid_out(parts.by_type(types, mixers, parts.gated(keys))),
            "norm_eps": keys.number("layer_norm_eps", 1e-5),
            "norm": "layernorm_no_bias",
            "block": "parallel",
            "logit_scale": keys.number("logit_scale", 0.0625),
        }

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "parallel")
        mixers = mixers_of(model, AttentionConfig)
        rotated = [x for x in mixers if x.rope is not None]
        rope = parts.rope_keys(parts.required_rope(rotated)) if rotated else {"rope_theta": 1e4}
        return {
            **parts.size_keys(model, "layer_norm_eps"),
            **parts.head_keys(model, mixers),
            **parts.gated_keys(model),
            "rope_parameters": {"rope_type": "default"} | rope,
            "sliding_window": parts.one_window(mixers) or parts.DEFAULT_WINDOW,
            "layer_types": parts.window_types(mixers),
            "attention_bias": only_value((x.bias for x in mixers), "bias") is True,
            "logit_scale": model.logit_scale,
        }

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        return [
            *norm(model, "input_layernorm", "norm"),
            *parts.attention_rules(model, mixer, rows=parts.pair_rows(model, mixer)),
            *parts.gated_rules(feedforward),
        ]
