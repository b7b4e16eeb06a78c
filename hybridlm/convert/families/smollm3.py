"""SmolLM3: Llama's block, some layers without positions (arXiv 2501.18795), some with windows."""

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


class SmolLM3(Family):
    """Pre-norm blocks; RoPE and windows are chosen layer by layer."""

    architecture: ClassVar[str] = "SmolLM3ForCausalLM"
    model_type: ClassVar[str] = "smollm3"
    models: ClassVar[str] = "SmolLM3"

    def settings(self, keys: Keys) -> dict[str, Any]:
        depth = keys.integer("num_hidden_layers")
        every = keys.integer("no_rope_layer_interval", 4)
        default = [int((i + 1) % max(every, 1) != 0) for i in range(depth)]
        rotated = keys.list("no_rope_layers", depth, default)
        keys.harmless("max_window_layers")  # the class does not read it
        window = keys.integer("sliding_window", None)
        if not keys.flag("use_sliding_window", False):
            window = None
        local = [parts.FULL if window is None or has else parts.SLIDING for has in rotated]
        types = parts.windowed_types(keys, local, window)
        mixer = parts.heads(keys, kv_heads=4) | {"bias": keys.flag("attention_bias", False)}
        rope = parts.rope(keys, 2_000_000.0, whole=True)
        feed = parts.gated(keys, bias=keys.flag("mlp_bias", False))
        layers = [
            LayerSettings(*_mixer(mixer, rope if has else None, kind, window), feed)
            for has, kind in zip(rotated, types)
        ]
        return parts.sizes(keys, tied=True) | laid_out(layers)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        mixers = mixers_of(model, AttentionConfig)
        rotated = [x for x in mixers if x.rope is not None]
        if not rotated:
            raise Inexpressible("no layer has RoPE")
        window = parts.one_window(mixers)
        return {
            **parts.size_keys(model),
            **parts.head_keys(model, mixers),
            **parts.gated_keys(model),
            "rope_parameters": parts.rope_keys(parts.required_rope(rotated)),
            "no_rope_layers": [int(x.rope is not None) for x in mixers],
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "layer_types": parts.window_types(mixers),
            "attention_bias": only_value((x.bias for x in mixers), "bias") is True,
            "mlp_bias": model.layer_feedforwards()[0].bias,
        }

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        return parts.block_rules(model, mixer, feedforward)


def _mixer(
    mixer: dict[str, Any], rope: dict[str, Any] | None, kind: str, window: int | None
) -> tuple[str, dict[str, Any]]:
    """The name and the settings of a layer's mixer."""
    found = mixer | {"rope": rope}
    name = "full" if rope else "nope"
    if kind == parts.SLIDING:
        return f"swa_{name}" if rope is None else "swa", found | {"window": window}
    return name, found
