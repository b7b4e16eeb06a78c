"""Falcon-H1 (arXiv 2507.22448): attention and Mamba-2 side by side, under constant multipliers."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import parts, state_space
from hybridlm.convert.family import (
    Family,
    Inexpressible,
    mixers_of,
    norm,
    only_value,
    require_block,
)
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.mixers.mamba2 import Mamba2Config
from hybridlm.models.mixers.parallel import ParallelConfig
from hybridlm.models.settings import ModelConfig

ATTENTION, SSM = "attention", "ssm"


class FalconH1(Family):
    """Pre-norm blocks of attention plus Mamba-2, each with factors on what it reads and gives."""

    architecture: ClassVar[str] = "FalconH1ForCausalLM"
    model_type: ClassVar[str] = "falcon_h1"
    models: ClassVar[str] = "Falcon-H1"
    final_norm: ClassVar[str] = "final_layernorm"

    def settings(self, keys: Keys) -> dict[str, Any]:
        sizes = parts.sizes(keys, tied=False) | {
            "norm_eps": keys.number("rms_norm_eps", 1e-5),
            "embedding_scale": keys.number("embedding_multiplier", 1.0),
            "logit_scale": keys.number("lm_head_multiplier", 1.0),
        }
        keys.harmless("num_logits_to_keep", "layers_block_type", "layer_types")
        keys.harmless("mlp_expansion_factor", "attn_layer_indices", "mamba_use_mlp")
        mixer = {
            "kind": "parallel",
            "combine": "sum",
            "branches": {ATTENTION: _attention(keys), SSM: _mamba(keys, sizes["width"])},
            "multipliers": {
                ATTENTION: keys.number("attention_out_multiplier", 1.0),
                SSM: keys.number("ssm_out_multiplier", 1.0),
            },
            "input_multipliers": {
                ATTENTION: keys.number("attention_in_multiplier", 1.0),
                SSM: keys.number("ssm_in_multiplier", 1.0),
            },
        }
        feed = parts.gated(keys, bias=keys.flag("mlp_bias", False))
        gate, out = _numbers(keys, "mlp_multipliers", 2)
        if (gate, out) != (1, 1):
            activation = keys.choice("hidden_act", parts.ACTIVATIONS, "silu")
            factors = {"gate_multiplier": gate, "out_multiplier": out}
            feed = feed | {"kind": "gated", "activation": activation} | factors
        layers = [LayerSettings("hybrid", mixer, feed)] * keys.integer("num_hidden_layers")
        return sizes | laid_out(layers)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        mixers = mixers_of(model, ParallelConfig)
        pairs = [_pair(i, x) for i, x in enumerate(mixers)]
        mixer = only_value(mixers, "the mixer")
        (attention_name, attention), (ssm_name, ssm) = pairs[0]
        feed = model.layer_feedforwards()[0]
        size = attention.head_size(model.width)
        return {
            **parts.size_keys(model),
            **parts.gated_keys(model),
            **parts.head_keys(model, [attention]),
            "rope_parameters": parts.rope_keys(parts.required_rope([attention])),
            "attention_bias": attention.bias is True,
            "key_multiplier": parts.rounded((attention.scale or size**-0.5) * size**0.5),
            **state_space.mamba2_keys(model, [ssm], state_space.PREFIXED),
            **state_space.limit_keys(ssm),
            "mamba_d_ssm": ssm.head_count(model.width) * ssm.head_dim,
            "mamba_rms_norm": ssm.norm != "none",
            "mamba_norm_before_gate": ssm.norm != "after_gate",
            "mamba_proj_bias": ssm.bias in (True, "in"),
            "projectors_bias": ssm.bias in (True, "out"),
            "ssm_multipliers": list(ssm.multipliers or (1.0,) * 5),
            "embedding_multiplier": model.embedding_scale,
            "lm_head_multiplier": model.logit_scale,
            "attention_in_multiplier": mixer.input_multiplier(attention_name),
            "attention_out_multiplier": mixer.multiplier(attention_name),
            "ssm_in_multiplier": mixer.input_multiplier(ssm_name),
            "ssm_out_multiplier": mixer.multiplier(ssm_name),
            "mlp_bias": feed.bias,
            "mlp_multipliers": [feed.gate_multiplier, feed.out_multiplier],
        }

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        (attention_name, attention), (ssm_name, ssm) = _pair(index, mixer)
        under = "mixer.branches."
        return [
            *norm(model, "input_layernorm", "mixer_norm"),
            *parts.attention_rules(model, attention, ours=under + attention_name),
            *state_space.mamba2_rules(model, ssm, "mamba", under + ssm_name),
            *norm(model, "pre_ff_layernorm", "mlp_norm"),
            *parts.gated_rules(feedforward, "feed_forward"),
        ]


def _attention(keys: Keys) -> dict[str, Any]:
    found = parts.heads(keys, kv_heads=8) | {
        "rope": parts.rope(keys, whole=True),
        "bias": keys.flag("attention_bias", False),
    }
    factor = keys.number("key_multiplier", 1.0)  # of keys, which is one of the logits
    return found if factor == 1 else found | {"scale": factor * found["head_dim"] ** -0.5}


def _mamba(keys: Keys, width: int) -> dict[str, Any]:
    found = state_space.prefixed(keys, width, keys.integer("mamba_d_ssm", 1024, nullable=True))
    before = keys.flag("mamba_norm_before_gate", True)
    normed = keys.flag("mamba_rms_norm", False)
    found["norm"] = ("before_gate" if before else "after_gate") if normed else "none"
    outward = keys.flag("projectors_bias", False)
    found["bias"] = state_space.projection_bias(found["bias"], outward)
    factors = _numbers(keys, "ssm_multipliers", 5)
    return found if factors == [1] * 5 else found | {"multipliers": factors}


def _numbers(keys: Keys, name: str, length: int) -> list[float]:
    found = keys.list(name, default=[1.0] * length)
    if len(found) != length or not all(isinstance(x, int | float) for x in found):
        keys.refuse(name, f"must be {length} numbers, not {found}")
    return found


def _pair(
    index: int, mixer: ParallelConfig
) -> tuple[tuple[str, AttentionConfig], tuple[str, Mamba2Config]]:
    """The attention and the Mamba-2 branch, with their names.

    Raises:
      Inexpressible: if a mixer has others.
    """
    attention = [(n, x) for n, x in mixer.branches.items() if isinstance(x, AttentionConfig)]
    ssm = [(n, x) for n, x in mixer.branches.items() if isinstance(x, Mamba2Config)]
    if (len(attention), len(ssm), len(mixer.branches)) != (1, 1, 2):
        raise Inexpressible(f"layer {index} is {mixer.mechanism}, not attention plus Mamba-2")
    return attention[0], ssm[0]
