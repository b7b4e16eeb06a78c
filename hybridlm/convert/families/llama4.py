"""Llama 4's text model: chunked attention, full attention without positions, experts or dense layers."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import experts, parts
from hybridlm.convert.family import (
    Family,
    Inexpressible,
    mixers_of,
    norm,
    not_none,
    only_value,
    require_block,
)
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule, linear
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.settings import ModelConfig

CHUNKED = "chunked_attention"


class Llama4(Family):
    """Pre-norm blocks; layers with RoPE have L2 norms of q and k, those without a temperature.

    The router's weights multiply what the experts read, and a shared expert has the size of the others.
    The class normalises q and k after their rotation, and we before it, which is the same: a rotation
    keeps the mean square.
    """

    architecture: ClassVar[str] = "Llama4ForCausalLM"
    model_type: ClassVar[str] = "llama4_text"
    models: ClassVar[str] = "Llama 4 Scout and Maverick, text"
    ignored: ClassVar[frozenset[str]] = Family.ignored | experts.TRAINING

    def settings(self, keys: Keys) -> dict[str, Any]:
        depth = keys.integer("num_hidden_layers")
        every = max(keys.integer("no_rope_layer_interval", 4), 1)
        default = [int((i + 1) % every != 0) for i in range(depth)]
        # An empty list stands for the class's own, as in transformers.
        rotated = keys.list("no_rope_layers", None, default) or default
        if len(rotated) != depth:
            keys.refuse("no_rope_layers", f"has {len(rotated)} entries for {depth} layers")
        local = [CHUNKED if has else parts.FULL for has in rotated]
        types = parts.layer_types(keys, local, (parts.FULL, CHUNKED))
        chunk = keys.integer("attention_chunk_size", 8192, nullable=True)
        rope = parts.rope(keys, 500_000.0, whole=True)
        if "yarn" in rope:
            keys.refuse("rope_parameters", "has rope_type 'yarn': its norms would undo the factor")
        mixer = parts.heads(keys, head_dim=128, kv_heads=8)
        mixer["bias"] = keys.flag("attention_bias", False)
        qk_norm = "l2" if keys.flag("use_qk_norm", True) else False
        tuned = keys.truth("attn_temperature_tuning", True)
        keys.harmless("for_llm_compressor")
        temperature = {
            "scale": keys.integer("floor_scale", 8192),
            "strength": keys.number("attn_scale", 0.1),
            "steps": True,
        }
        kinds = {
            True: mixer | {"rope": rope, "qk_norm": qk_norm},
            False: mixer | {"rope": None, "temperature": temperature if tuned else None},
        }
        layers = []
        for has, kind, (label, feed) in zip(rotated, types, _feedforwards(keys, depth)):
            local = kind == CHUNKED and chunk is not None
            name = (
                ("chunked" if local else "full") if has else ("chunked_nope" if local else "nope")
            )
            own = kinds[bool(has)] | ({"chunk": chunk} if local else {})
            layers.append(LayerSettings(name, own, feed, label))
        sizes = parts.sizes(keys, tied=False)
        return sizes | laid_out(layers) | {"norm_eps": keys.number("rms_norm_eps", 1e-5)}

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        mixers = mixers_of(model, AttentionConfig)
        rotated = [x for x in mixers if x.rope is not None]
        if not rotated:
            raise Inexpressible("no layer has RoPE")
        tuned = [x.temperature for x in mixers if x.rope is None and x.temperature is not None]
        chunks = [x.chunk for x in mixers if x.chunk is not None]
        keys = {
            "attn_temperature_tuning": bool(tuned),
            "floor_scale": int(tuned[0].scale) if tuned else None,
            "attn_scale": tuned[0].strength if tuned else None,
        }
        return {
            **parts.size_keys(model),
            **parts.head_keys(model, mixers),
            **_feedforward_keys(model),
            "rope_parameters": parts.rope_keys(parts.required_rope(rotated)),
            "no_rope_layers": [int(x.rope is not None) for x in mixers],
            "layer_types": [parts.FULL if x.chunk is None else CHUNKED for x in mixers],
            "attention_chunk_size": chunks[0] if chunks else 8192,
            "use_qk_norm": only_value((x.qk_norm for x in rotated), "qk_norm") == "l2",
            "attention_bias": only_value((x.bias for x in mixers), "bias") is True,
            **not_none(keys),
        }

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        found = [r for names in parts.PRENORM.items() for r in norm(model, *names)]
        if isinstance(mixer, AttentionConfig):
            found += parts.attention_rules(model, mixer, rows=parts.pair_rows(model, mixer))
        if not isinstance(feedforward, MoEConfig):
            return found + parts.gated_rules(feedforward, "feed_forward")
        found += experts.packed_rules(feedforward, "feed_forward", in_turn=False)
        for ours, theirs in experts.GATED.items():
            found += linear(f"feed_forward.shared_expert.{theirs}", f"mlp.shared.{ours}")
        return found


def _feedforwards(keys: Keys, depth: int) -> list[tuple[str, dict[str, Any]]]:
    """The name and the settings of each layer's feed-forward."""
    step = keys.integer("interleave_moe_layer_step", 1)
    if step < 1:
        keys.refuse("interleave_moe_layer_step", f"must be at least 1, not {step}")
    layers = keys.list("moe_layers", default=list(range(step - 1, depth, step)))
    router = {"scores": "sigmoid"}
    mixture = experts.mixture_settings(
        keys, router, experts=16, top_k=1, hidden="intermediate_size", size=8192
    )
    mixture |= {"weigh": "input", "shared_hidden": mixture["hidden"]}
    sparse = [i in layers for i in range(depth)]
    return experts.by_layer(keys, sparse, mixture, "intermediate_size_mlp")


def _feedforward_keys(model: ModelConfig) -> dict[str, Any]:
    """The inverse of `_feedforwards`."""
    feeds = experts.Feedforwards.of(model)
    found = feeds.dense_keys("intermediate_size_mlp")
    found["moe_layers"] = [i for i, sparse in enumerate(feeds.sparse) if sparse]
    if feeds.mixture is None:
        return found
    return found | experts.mixture_keys(feeds.mixture, "intermediate_size", "num_local_experts")
