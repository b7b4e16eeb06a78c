"""Llama 2 and 3 (arXiv 2307.09288, 2407.21783), and models of the same class, such as SmolLM2."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import parts
from hybridlm.convert.family import Family, mixers_of, only_value, require_block
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.settings import ModelConfig


class Llama(Family):
    """Pre-norm blocks with full attention, RoPE and SwiGLU."""

    architecture: ClassVar[str] = "LlamaForCausalLM"
    model_type: ClassVar[str] = "llama"
    models: ClassVar[str] = "Llama 2, 3, 3.1 (scaled RoPE), SmolLM2 and others of its form"

    def settings(self, keys: Keys) -> dict[str, Any]:
        keys.only("rope_interleaved", False, why="the class rotates halves")
        keys.harmless("is_llama_config")
        bias = keys.flag("attention_bias", False)
        mixer = parts.heads(keys) | {"rope": parts.rope(keys, whole=True), "bias": bias}
        feed = parts.gated(keys, bias=keys.flag("mlp_bias", False))
        layers = [LayerSettings("full", mixer, feed)] * keys.integer("num_hidden_layers")
        return parts.sizes(keys, tied=False) | laid_out(layers)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        mixers = mixers_of(model, AttentionConfig)
        return {
            **parts.size_keys(model),
            **parts.head_keys(model, mixers),
            **parts.gated_keys(model),
            "rope_parameters": parts.rope_keys(parts.required_rope(mixers)),
            "attention_bias": only_value((x.bias for x in mixers), "bias") is True,
            "mlp_bias": model.layer_feedforwards()[0].bias,
        }

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        return parts.block_rules(model, mixer, feedforward)
