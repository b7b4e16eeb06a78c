"""RecurrentGemma (arXiv 2404.07839): RG-LRU and windowed attention, as in Griffin."""

from collections.abc import Iterable
from typing import Any, ClassVar

import ml_dtypes

from hybridlm.convert import parts
from hybridlm.convert.family import Family, Inexpressible, norm, only_value, require_block
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule, linear, rule
from hybridlm.convert.transforms import ConvKernel
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.mixers.rglru import RGLRUConfig
from hybridlm.models.settings import ModelConfig

RECURRENT, ATTENTION = "recurrent", "attention"
LONGEST_PATTERN = 100  # times that the class repeats block_types


class RecurrentGemma(Family):
    """Pre-norm blocks of RG-LRU or attention; norms are offset by 1, logits have a soft cap."""

    architecture: ClassVar[str] = "RecurrentGemmaForCausalLM"
    model_type: ClassVar[str] = "recurrent_gemma"
    models: ClassVar[str] = "RecurrentGemma (Griffin)"
    final_norm: ClassVar[str] = "final_norm"

    def settings(self, keys: Keys) -> dict[str, Any]:
        sizes = parts.sizes(keys, tied=True) | {
            "norm": "rmsnorm_unit_offset",
            "logit_soft_cap": keys.number("logits_soft_cap", 30.0),
        }
        sizes["embedding_scale"] = embedding_scale(sizes["width"])
        keys.only("hidden_activation", "gelu_pytorch_tanh", "gelu_new")
        keys.harmless("w_init_variance_scale", "final_w_init_variance_scale", "head_dim")
        keys.harmless("embeddings_scale_by_sqrt_dim", "_block_types", "layers_block_type")
        depth, heads = keys.integer("num_hidden_layers"), keys.integer("num_attention_heads")
        pattern = keys.list("block_types", default=[RECURRENT, RECURRENT, ATTENTION])
        for name in pattern:
            if name not in (RECURRENT, ATTENTION):
                keys.refuse("block_types", f"has {name!r}, not {RECURRENT} or {ATTENTION}")
        if len(pattern) * LONGEST_PATTERN < depth:
            keys.refuse("block_types", f"is too short for {depth} layers")
        hidden = keys.integer("intermediate_size") // 2
        feed = {"kind": "gated", "hidden": hidden, "activation": "gelu_tanh", "bias": True}
        attention = {
            "kind": "attention",
            "heads": heads,
            "kv_heads": keys.integer("num_key_value_heads", heads),
            "head_dim": sizes["width"] // heads,
            "window": keys.integer("attention_window_size", 2048),
            "rope": parts.rope(keys, fraction=0.5),
            "bias": True if keys.flag("attention_bias", False) else "out",
        }
        recurrent = {
            "kind": "rglru",
            "recurrent_width": keys.integer("lru_width", sizes["width"]),
            "heads": heads,
            "conv_width": keys.integer("conv1d_width", 4),
            "bias": True,
        }
        made = {
            RECURRENT: LayerSettings("rglru", recurrent, feed),
            ATTENTION: LayerSettings("swa", attention, feed),
        }
        return sizes | laid_out([made[pattern[i % len(pattern)]] for i in range(depth)])

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        recurrent, attention, types = [], [], []
        for i, (_, mixer) in enumerate(model.layer_mixers()):
            if isinstance(mixer, RGLRUConfig):
                recurrent.append(mixer)
            elif isinstance(mixer, AttentionConfig):
                attention.append(mixer)
            else:
                raise Inexpressible(f"layer {i} is {mixer.mechanism}, not RG-LRU or attention")
            types.append(RECURRENT if isinstance(mixer, RGLRUConfig) else ATTENTION)
        feed = parts.gated_keys(model, activation="hidden_activation")
        found = {
            **parts.size_keys(model),
            **feed,
            "intermediate_size": 2 * feed["intermediate_size"],
            "block_types": types,
            "num_attention_heads": only_value((x.heads for x in recurrent + attention), "heads"),
        }
        if model.logit_soft_cap is None:
            raise Inexpressible("its logits have no soft cap")
        found["logits_soft_cap"] = model.logit_soft_cap
        if recurrent:
            mixer = only_value(recurrent, "the mixer")
            found["lru_width"] = mixer.channels(model.width)
            found["conv1d_width"] = mixer.conv_width
        if attention:
            rope = parts.required_rope(attention)
            found["num_key_value_heads"] = attention[0].kv_heads
            found["attention_window_size"] = parts.one_window(attention)
            found["attention_bias"] = attention[0].bias is True
            found["rope_parameters"] = {
                **parts.rope_keys(rope),
                "partial_rotary_factor": rope.fraction,
            }
        return found

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        if isinstance(mixer, RGLRUConfig):
            rules = _recurrent_rules()
        else:
            rules = parts.attention_rules(model, mixer, theirs="temporal_block")
        return [
            *norm(model, "temporal_pre_norm", "mixer_norm"),
            *rules,
            *norm(model, "channel_pre_norm", "mlp_norm"),
            *parts.gated_rules(feedforward, "mlp_block"),
        ]


def embedding_scale(width: int) -> float:
    """The root of the width as the class holds it, in bfloat16."""
    return float(ml_dtypes.bfloat16(width**0.5))


def _recurrent_rules() -> list[Rule]:
    block, gates = "temporal_block", "temporal_block.rg_lru"
    rules = [
        r
        for theirs, ours in (("linear_y", "branch"), ("linear_x", "input"), ("linear_out", "out"))
        for r in linear(f"{block}.{theirs}", f"mixer.{ours}", bias=True)
    ]
    for theirs, ours in (("recurrent_gate", "recurrence_gate"), ("input_gate", "input_gate")):
        rules.append(rule(f"{gates}.{theirs}_weight", f"mixer.{ours}.kernel"))
        rules.append(rule(f"{gates}.{theirs}_bias", f"mixer.{ours}.bias"))
    return [
        *rules,
        rule(f"{gates}.recurrent_param", "mixer.decay"),
        rule(f"{block}.conv_1d.weight", "mixer.conv.kernel", ConvKernel()),
        rule(f"{block}.conv_1d.bias", "mixer.conv.bias"),
    ]
