"""OLMo 2 (arXiv 2501.00656) and OLMo 3: norms after each half, and over all heads of q and of k."""

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


class Olmo2(Family):
    """Post-norm blocks with full attention, RoPE and SwiGLU."""

    architecture: ClassVar[str] = "Olmo2ForCausalLM"
    model_type: ClassVar[str] = "olmo2"
    models: ClassVar[str] = "OLMo 2"

    def settings(self, keys: Keys) -> dict[str, Any]:
        mixer = _mixer(keys) | {"rope": parts.rope(keys, whole=True)}
        layers = [LayerSettings("full", mixer, parts.gated(keys))]
        return _sizes(keys) | laid_out(layers * keys.integer("num_hidden_layers"))

    def config(self, model: ModelConfig) -> dict[str, Any]:
        mixers = mixers_of(model, AttentionConfig)
        rope = parts.rope_keys(parts.required_rope(mixers))
        return _keys(model, mixers) | {"rope_parameters": rope}

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        return parts.block_rules(model, mixer, feedforward, parts.POSTNORM)


class Olmo3(Olmo2):
    """As OLMo 2, with windows in three of four layers, and RoPE of its own in each kind of layer."""

    architecture: ClassVar[str] = "Olmo3ForCausalLM"
    model_type: ClassVar[str] = "olmo3"
    models: ClassVar[str] = "OLMo 3"

    def settings(self, keys: Keys) -> dict[str, Any]:
        mixer, ropes = _mixer(keys), parts.rope_by_type(keys, 500_000.0, 500_000.0)
        types = parts.layer_types(keys, parts.repeated(4, keys.integer("num_hidden_layers")))
        window = parts.required_window(keys, 4096)
        mixers = parts.full_and_sliding(mixer, ropes, window)
        layers = parts.by_type(types, mixers, parts.gated(keys))
        return _sizes(keys) | laid_out(layers)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        mixers = mixers_of(model, AttentionConfig)
        return _keys(model, mixers) | parts.type_keys(mixers)


def _sizes(keys: Keys) -> dict[str, Any]:
    sizes = parts.sizes(keys, tied=False)
    return sizes | {"norm_eps": keys.number("rms_norm_eps", 1e-5), "block": "postnorm"}


def _mixer(keys: Keys) -> dict[str, Any]:
    own = {"bias": keys.flag("attention_bias", False), "qk_norm": "whole"}
    return parts.heads(keys) | own


def _keys(model: ModelConfig, mixers: list[AttentionConfig]) -> dict[str, Any]:
    require_block(model, "postnorm")
    return {
        **parts.size_keys(model),
        **parts.head_keys(model, mixers),
        **parts.gated_keys(model),
        "attention_bias": only_value((x.bias for x in mixers), "bias") is True,
    }
