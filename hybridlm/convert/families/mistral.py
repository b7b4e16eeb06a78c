"""Mistral (arXiv 2310.06825): Llama's block, with a window of one size in all layers, or none."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import parts
from hybridlm.convert.family import Family, mixers_of, require_block
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.settings import ModelConfig


class Mistral(Family):
    """Pre-norm blocks with windowed attention, RoPE and SwiGLU."""

    architecture: ClassVar[str] = "MistralForCausalLM"
    model_type: ClassVar[str] = "mistral"
    models: ClassVar[str] = "Mistral 7B, Nemo and Small, Zephyr"

    def settings(self, keys: Keys) -> dict[str, Any]:
        keys.only("attention_bias", False, why="the class has no biases")
        window = keys.integer("sliding_window", 4096, nullable=True)
        mixer = parts.heads(keys, kv_heads=8) | {
            "rope": parts.rope(keys, whole=True),
            "window": window,
        }
        name = "full" if window is None else "swa"
        depth = keys.integer("num_hidden_layers")
        layers = [LayerSettings(name, mixer, parts.gated(keys))] * depth
        return parts.sizes(keys, tied=False) | laid_out(layers)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        mixers = mixers_of(model, AttentionConfig)
        return {
            **parts.size_keys(model),
            **parts.head_keys(model, mixers),
            **parts.gated_keys(model),
            "rope_parameters": parts.rope_keys(parts.required_rope(mixers)),
            "sliding_window": mixers[0].window,
        }

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        return parts.block_rules(model, mixer, feedforward)
