"""The dense text models of Gemma 4: larger heads, shared projections and fewer frequencies in full layers."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import parts
from hybridlm.convert.family import Family, mixers_of, only_value, require_block
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule, rule
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.settings import ModelConfig

#: Of the class: what `rope_parameters` are where the key is absent.
ROPES = {
    parts.FULL: {"theta": 1_000_000.0, "kept": {"fraction": 0.25}},
    parts.SLIDING: {"theta": 10_000.0},
}


class Gemma4(Family):
    """Sandwich norms and a scalar a layer; norms of q, k and v; windows in most layers.

    Per-layer inputs, keys shared by layers, and experts are refused.
    """

    architecture: ClassVar[str] = "Gemma4ForCausalLM"
    model_type: ClassVar[str] = "gemma4_text"
    models: ClassVar[str] = "Gemma 4, dense text without per-layer inputs and shared keys"

    def settings(self, keys: Keys) -> dict[str, Any]:
        depth = keys.integer("num_hidden_layers")
        _refuse_the_rest(keys)
        types = parts.layer_types(keys, parts.repeated(6, depth))
        types[-1] = parts.FULL  # as the class does
        ropes = ROPES
        if "rope_parameters" in keys:
            ropes = parts.rope_by_type(keys, 1_000_000.0, 10_000.0)
        keys.harmless("rope_parameters")
        mixer = parts.heads(keys, head_dim=256, kv_heads=4) | {
            "bias": keys.flag("attention_bias", False),
            "qk_norm": True,
            "v_norm": True,
            "scale": 1.0,
        }
        shared = keys.flag("attention_k_eq_v", False)
        window = keys.integer("sliding_window", 512)
        feed = parts.gated(keys, activation="hidden_activation", default="gelu_pytorch_tanh")
        layers = []
        for kind, own in zip(types, _own_sizes(keys, types, shared)):
            if kind == parts.SLIDING:
                name, more = "swa", {"window": window}
            else:
                name, more = "full", {"values": "keys" if shared else "own"}
            more |= own | {"rope": ropes[kind]}
            layers.append(LayerSettings(name, mixer | more, feed))
        return {
            **parts.sizes(keys, tied=True),
            **laid_out(layers),
            "block": "scaled_sandwich",
            "embedding_scale": keys.integer("hidden_size") ** 0.5,
            "logit_soft_cap": keys.number("final_logit_softcapping", None),
        }

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "scaled_sandwich")
        mixers = mixers_of(model, AttentionConfig)
        types = parts.window_types(mixers)
        first = next((x for x in mixers if x.window is not None), mixers[0])
        own = {
            str(i): {"head_dim": x.head_size(model.width), "num_key_value_heads": x.kv_heads}
            for i, (x, kind) in enumerate(zip(mixers, types))
            if kind == parts.FULL
        }
        return {
            **parts.size_keys(model),
            **parts.gated_keys(model, activation="hidden_activation"),
            **parts.type_keys(mixers),
            "num_attention_heads": only_value((x.heads for x in mixers), "heads"),
            "num_key_value_heads": first.kv_heads,
            "head_dim": first.head_size(model.width),
            "per_layer_config": own,
            "attention_k_eq_v": any(x.values == "keys" for x in mixers),
            "attention_bias": only_value((x.bias for x in mixers), "bias") is True,
            "final_logit_softcapping": model.logit_soft_cap,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "enable_moe_block": False,
        }

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        return [
            *parts.block_rules(model, mixer, feedforward, parts.SANDWICH),
            rule("layer_scalar", "output_scale"),
        ]


def _refuse_the_rest(keys: Keys) -> None:
    """Refuses what the larger and the smaller models of the family add."""
    keys.only("use_bidirectional_attention", None)
    if keys.integer("hidden_size_per_layer_input", 256):
        keys.refuse("hidden_size_per_layer_input", "is not 0: hybridlm has no per-layer inputs")
    keys.only("num_kv_shared_layers", 0, why="hybridlm has no keys that layers share")
    keys.only("enable_moe_block", False, why="hybridlm reads Gemma 4's dense models")
    keys.harmless("vocab_size_per_layer_input", "num_experts", "top_k_experts")
    keys.harmless("moe_intermediate_size", "use_double_wide_mlp")


def _own_sizes(keys: Keys, types: list[str], shared: bool) -> list[dict[str, int]]:
    """The head_dim and kv_heads of each layer, where they are not those of the config."""
    size = keys.integer("global_head_dim", 512)
    groups = keys.integer("num_global_key_value_heads", None)
    of_full = {"head_dim": size} | ({"kv_heads": groups} if shared and groups else {})
    given = keys.object("per_layer_config", None)
    if given is None:
        return [of_full if kind == parts.FULL else {} for kind in types]
    found = []
    for i in range(len(types)):
        layer = given.object(str(i), None)
        own = {}
        if layer is not None:
            sizes = {
                "head_dim": layer.integer("head_dim", None),
                "kv_heads": layer.integer("num_key_value_heads", None),
            }
            own = {name: value for name, value in sizes.items() if value is not None}
            layer.finish()
        found.append(own)
    given.finish()
    return found
