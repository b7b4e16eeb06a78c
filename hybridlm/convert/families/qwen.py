"""Qwen2, 2.5 (arXiv 2407.10671) and 3 (arXiv 2505.09388): biases of q, k, v, or norms of q and k."""

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


class Qwen2(Family):
    """Pre-norm blocks with biases on q, k and v; layers from `max_window_layers` may have windows."""

    architecture: ClassVar[str] = "Qwen2ForCausalLM"
    model_type: ClassVar[str] = "qwen2"
    models: ClassVar[str] = "Qwen2, Qwen2.5, QwQ"
    head_dim: ClassVar[int | None] = None

    def settings(self, keys: Keys) -> dict[str, Any]:
        depth = keys.integer("num_hidden_layers")
        keys.only("use_mrope", False, why="the class rotates by one position of a token")
        window = keys.integer("sliding_window", 4096, nullable=True)
        if not keys.flag("use_sliding_window", False):
            window = None
        below = keys.integer("max_window_layers", 28)
        default = [
            parts.SLIDING if window is not None and i >= below else parts.FULL for i in range(depth)
        ]
        types = parts.windowed_types(keys, default, window)
        mixer = parts.heads(keys, head_dim=self.head_dim, kv_heads=32) | {
            "rope": parts.rope(keys, whole=True),
            **self.own(keys),
        }
        mixers = {parts.FULL: ("full", mixer), parts.SLIDING: ("swa", mixer | {"window": window})}
        layers = parts.by_type(types, mixers, parts.gated(keys))
        return parts.sizes(keys, tied=False) | laid_out(layers)

    def own(self, keys: Keys) -> dict[str, Any]:
        """The settings of attention that Qwen2 and Qwen3 do not share."""
        return {"bias": "qkv"}

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        mixers = mixers_of(model, AttentionConfig)
        window = parts.one_window(mixers)
        return {
            **parts.size_keys(model),
            **parts.head_keys(model, mixers),
            **parts.gated_keys(model),
            "rope_parameters": parts.rope_keys(parts.required_rope(mixers)),
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "layer_types": parts.window_types(mixers),
        }

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        return parts.block_rules(model, mixer, feedforward)


class Qwen3(Qwen2):
    """Pre-norm blocks with RMSNorm on each head of q and k."""

    architecture: ClassVar[str] = "Qwen3ForCausalLM"
    model_type: ClassVar[str] = "qwen3"
    models: ClassVar[str] = "Qwen3, dense"
    head_dim: ClassVar[int | None] = 128

    def own(self, keys: Keys) -> dict[str, Any]:
        return {"qk_norm": True, "bias": keys.flag("attention_bias", False)}

    def config(self, model: ModelConfig) -> dict[str, Any]:
        biases = (x.bias for x in mixers_of(model, AttentionConfig))
        return super().config(model) | {"attention_bias": only_value(biases, "bias") is True}
