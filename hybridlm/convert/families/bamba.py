"""Bamba: Mamba-2 layers and a few of attention, each with a gated feed-forward."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import parts, state_space
from hybridlm.convert.family import Family, norm, require_block
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.settings import ModelConfig


class Bamba(Family):
    """Pre-norm blocks of Mamba-2 or attention, whose RoPE turns half of each head."""

    architecture: ClassVar[str] = "BambaForCausalLM"
    model_type: ClassVar[str] = "bamba"
    models: ClassVar[str] = "Bamba"
    final_norm: ClassVar[str] = "final_layernorm"

    def settings(self, keys: Keys) -> dict[str, Any]:
        sizes = parts.sizes(keys, tied=False) | {"norm_eps": keys.number("rms_norm_eps", 1e-5)}
        depth = keys.integer("num_hidden_layers")
        keys.harmless("num_logits_to_keep", "layers_block_type", "layer_types")
        keys.harmless("attn_rotary_emb")  # the class rotates half of a head, whatever it says
        feed = parts.gated(keys, bias=keys.flag("mlp_bias", False))
        attention = parts.heads(keys) | {
            "rope": parts.rope(keys, fraction=0.5),
            "bias": keys.flag("attention_bias", False),
        }
        attending = {*keys.list("attn_layer_indices", default=[])}
        layers = [LayerSettings("full", attention, feed)] * depth
        if attending.issuperset(range(depth)):
            state_space.without(keys)
        else:
            mamba = LayerSettings("mamba", state_space.prefixed(keys, sizes["width"]), feed)
            layers = [x if i in attending else mamba for i, x in enumerate(layers)]
        return sizes | laid_out(layers)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        mamba, attention = state_space.split_kinds(model)
        found = {
            **parts.size_keys(model),
            **parts.gated_keys(model),
            "mlp_bias": model.layer_feedforwards()[0].bias,
            **state_space.prefixed_keys(model, list(mamba.values())),
            "attn_layer_indices": list(attention),
            **parts.NO_HEADS,
        }
        if attention:
            layers = list(attention.values())
            rope = parts.required_rope(layers)
            found |= parts.head_keys(model, layers)
            found["rope_parameters"] = {
                **parts.rope_keys(rope),
                "partial_rotary_factor": rope.fraction,
            }
            found["attention_bias"] = layers[0].bias is True
        return found

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        return [
            *norm(model, "input_layernorm", "mixer_norm"),
            *state_space.mixer_rules(model, mixer),
            *norm(model, "pre_ff_layernorm", "mlp_norm"),
            *parts.gated_rules(feedforward, "feed_forward"),
        ]
