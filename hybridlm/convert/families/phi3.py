"""Phi-3 (arXiv 2404.14219) and Phi-4: Llama's block with fused projections, in one window or none."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import parts
from hybridlm.convert.family import Family, mixers_of, norm, require_block
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule, linear, rule
from hybridlm.convert.transforms import TRANSPOSED, Split, chain
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.settings import ModelConfig

#: Settings that change RoPE, and their types: the class refuses each, and takes yarn for LongRoPE.
SCALED = {"kept": "proportional", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}


class Phi3(Family):
    """Pre-norm blocks with attention, partial RoPE and SwiGLU."""

    architecture: ClassVar[str] = "Phi3ForCausalLM"
    model_type: ClassVar[str] = "phi3"
    models: ClassVar[str] = "Phi-3 and Phi-4 without LongRoPE"

    def settings(self, keys: Keys) -> dict[str, Any]:
        window = keys.integer("sliding_window", None)
        mixer = parts.heads(keys) | {"window": window}
        keys.only("attention_bias", False, why="the class has no biases")
        rope = parts.rope(keys)
        if scaled := rope.keys() & SCALED.keys():
            given = "rope_parameters" if "rope_parameters" in keys else "rope_scaling"
            kind = SCALED[min(scaled)]
            keys.refuse(given, f"has rope_type {kind!r}: the class has default and longrope")
        if "fraction" in rope:  # transformers rounds down
            rope["fraction"] = parts.rounded_down(rope["fraction"], mixer["head_dim"])
        keys.harmless("original_max_position_embeddings")
        name = "full" if window is None else "swa"
        layer = LayerSettings(name, mixer | {"rope": rope}, parts.gated(keys))
        sizes = parts.sizes(keys, tied=False) | {"norm_eps": keys.number("rms_norm_eps", 1e-5)}
        return sizes | laid_out([layer] * keys.integer("num_hidden_layers"))

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
        found = [r for names in parts.PRENORM.items() for r in norm(model, *names)]
        if isinstance(mixer, AttentionConfig):
            size = mixer.head_size(model.width)
            rows = mixer.heads * size, mixer.kv_heads * size, mixer.kv_heads * size
            found.append(
                rule(
                    "self_attn.qkv_proj.weight",
                    [f"mixer.{x}.kernel" for x in ("q", "k", "v")],
                    chain(Split(rows), TRANSPOSED),
                )
            )
            found += linear("self_attn.o_proj", "mixer.out")
        if isinstance(feedforward, parts.Gated):
            hidden = feedforward.hidden
            both = chain(Split((hidden, hidden)), TRANSPOSED)
            names = ["mlp.gate.kernel", "mlp.up.kernel"]
            found.append(rule("mlp.gate_up_proj.weight", names, both))
            found += linear("mlp.down_proj", "mlp.down")
        return found
