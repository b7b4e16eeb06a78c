"""Mistral (arXiv 2310.06825) and Ministral: Llama's block, with windows of one size or none."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import parts
from hybridlm.convert.family import Family, Inexpressible, mixers_of, only_value, require_block
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.settings import ModelConfig

#: RoPE of a Ministral 3 whose config.json has none.
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    parts.LENGTH: 16_384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
BETA = "llama_4_scaling_beta"


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


class Ministral(Mistral):
    """As Mistral; each layer has the window or none."""

    architecture: ClassVar[str] = "MinistralForCausalLM"
    model_type: ClassVar[str] = "ministral"
    models: ClassVar[str] = "Ministral, with windows in some layers"

    def settings(self, keys: Keys) -> dict[str, Any]:
        window = parts.required_window(keys, 4096)
        rope = parts.rope(keys, whole=True)
        mixers = parts.full_and_sliding(
            parts.heads(keys, kv_heads=8), {parts.FULL: rope, parts.SLIDING: rope}, window
        )
        types = parts.layer_types(keys, [parts.SLIDING] * keys.integer("num_hidden_layers"))
        layers = parts.by_type(types, mixers, parts.gated(keys))
        return parts.sizes(keys, tied=False) | laid_out(layers)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        mixers = mixers_of(model, AttentionConfig)
        return super().config(model) | {
            "sliding_window": parts.one_window(mixers) or parts.DEFAULT_WINDOW,
            "layer_types": parts.window_types(mixers),
        }


class Ministral3(Mistral):
    """As Mistral; queries grow with their position, in steps of the context that RoPE was trained on."""

    architecture: ClassVar[str] = "Ministral3ForCausalLM"
    model_type: ClassVar[str] = "ministral3"
    models: ClassVar[str] = "Ministral 3, text: 3B, 8B and 14B"

    def settings(self, keys: Keys) -> dict[str, Any]:
        window = keys.integer("sliding_window", None)
        name = "full" if window is None else "swa"
        mixer = parts.heads(keys, head_dim=128, kv_heads=8) | self.positions(keys)
        layer = LayerSettings(name, mixer | {"window": window}, parts.gated(keys))
        sizes = parts.sizes(keys, tied=False) | {"norm_eps": keys.number("rms_norm_eps", 1e-5)}
        return sizes | laid_out([layer] * keys.integer("num_hidden_layers"))

    def positions(self, keys: Keys) -> dict[str, Any]:
        """RoPE, and the factor on queries, whose settings are among those of RoPE."""
        own = (BETA, parts.LENGTH, "max_position_embeddings")
        rope = parts.rope(keys, whole=True, default=YARN, also=own)
        given = parts.rope_object(keys, YARN)
        strength = given.number(BETA)
        length = keys.integer(parts.LENGTH, given.integer(parts.LENGTH, None))
        for scaled in ("yarn", "llama3"):
            length = rope.get(scaled, {}).get("length", length)
        if length is None:
            given.refuse(parts.LENGTH, "is missing")
        if strength < 0:
            given.refuse(BETA, f"is {strength}: hybridlm has no factor on queries that falls")
        temperature = {"scale": length, "strength": strength, "steps": "from_zero"}
        return {"rope": rope, "temperature": temperature if strength else None}

    def config(self, model: ModelConfig) -> dict[str, Any]:
        found = super().config(model)
        mixers = mixers_of(model, AttentionConfig)
        temperature = only_value((x.temperature for x in mixers), "temperature")
        rope = found["rope_parameters"]
        if temperature is None:
            return found | {
                "rope_parameters": {parts.LENGTH: YARN[parts.LENGTH], **rope, BETA: 0.0}
            }
        if (
            temperature.strength is None
            or rope.get(parts.LENGTH, temperature.scale) != temperature.scale
        ):
            raise Inexpressible(f"layer 0 has temperature {temperature}")
        own = {parts.LENGTH: int(temperature.scale), BETA: temperature.strength}
        return found | {"rope_parameters": rope | own}
