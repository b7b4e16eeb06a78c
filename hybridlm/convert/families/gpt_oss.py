"""gpt-oss (arXiv 2508.10925): sinks, biases, windows in every other layer, clamped gated experts."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import experts, parts
from hybridlm.convert.family import Family, mixers_of, norm, only_value, require_block
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.settings import ModelConfig

#: RoPE of a config.json that says nothing of its scaling.
YARN = {"factor": 32.0, "length": 4096, "fast": 32.0, "slow": 1.0, "truncate": False}


class GptOss(Family):
    """Pre-norm blocks; each head has a sink, and each expert's matrices have biases."""

    architecture: ClassVar[str] = "GptOssForCausalLM"
    model_type: ClassVar[str] = "gpt_oss"
    models: ClassVar[str] = "gpt-oss 20B and 120B (without quantisation)"
    ignored: ClassVar[frozenset[str]] = Family.ignored | experts.TRAINING

    def settings(self, keys: Keys) -> dict[str, Any]:
        depth = keys.integer("num_hidden_layers")
        default = [parts.FULL if (i + 1) % 2 == 0 else parts.SLIDING for i in range(depth)]
        scaled = "rope_parameters" in keys or "rope_scaling" in keys
        rope = parts.rope(keys, 150_000.0, whole=True) | ({} if scaled else {"yarn": YARN})
        mixer = parts.heads(keys, head_dim=64, kv_heads=8) | {
            "bias": keys.flag("attention_bias", True),
            "sinks": True,
        }
        window = parts.required_window(keys, 128)
        ropes = {parts.FULL: rope, parts.SLIDING: rope}
        mixers = parts.full_and_sliding(mixer, ropes, window)
        # The class has an activation of its own; the second names are those of the original code.
        keys.harmless("hidden_act", "experts_per_token", "initial_context_length")
        keys.harmless("router_aux_loss_coef")
        mixture = {
            "kind": "moe",
            "experts": keys.integer("num_experts", keys.integer("num_local_experts", 128)),
            "top_k": keys.integer("num_experts_per_tok", 4),
            "hidden": keys.integer("intermediate_size", 2880),
            "bias": True,
            "clamp": keys.number("swiglu_limit", 7.0),
            "gate_slope": keys.number("swiglu_alpha", 1.702),
            "up_offset": 1.0,
            "router": {"scores": "softmax_chosen", "bias": True},
        }
        types = parts.layer_types(keys, default)
        layers = [LayerSettings(*mixers[kind], mixture, "moe") for kind in types]
        sizes = parts.sizes(keys, tied=False) | {"norm_eps": keys.number("rms_norm_eps", 1e-5)}
        return sizes | laid_out(layers)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        mixers, mixture = mixers_of(model, AttentionConfig), experts.required_mixture(model)
        return {
            **parts.size_keys(model),
            **parts.head_keys(model, mixers),
            "attention_bias": only_value((x.bias for x in mixers), "bias") is True,
            "rope_parameters": parts.rope_keys(parts.required_rope(mixers)),
            "sliding_window": parts.one_window(mixers) or parts.DEFAULT_WINDOW,
            "layer_types": parts.window_types(mixers),
            "num_local_experts": mixture.experts,
            "num_experts_per_tok": mixture.top_k,
            "intermediate_size": mixture.hidden,
            "swiglu_limit": mixture.clamp,
            "swiglu_alpha": mixture.gate_slope,
        }

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        found = [r for names in parts.PRENORM.items() for r in norm(model, *names)]
        if isinstance(mixer, AttentionConfig):
            found += parts.attention_rules(model, mixer)
        if isinstance(feedforward, MoEConfig):
            found += experts.packed_rules(feedforward, "mlp", in_turn=True)
        return found
