"""AFMoE (Trinity): gated attention, windows with RoPE, full layers without, sandwich norms, experts."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import experts, parts
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
from hybridlm.convert.table import Rule, linear
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.settings import ModelConfig

NORMS = {
    "input_layernorm": "mixer_norm",
    "post_attention_layernorm": "mixer_post_norm",
    "pre_mlp_layernorm": "mlp_norm",
    "post_mlp_layernorm": "mlp_post_norm",
}


class AFMoE(Family):
    """The lowest layers are dense, the others have experts that a bias balances, and a shared one."""

    architecture: ClassVar[str] = "AfmoeForCausalLM"
    model_type: ClassVar[str] = "afmoe"
    models: ClassVar[str] = "Trinity Nano, Mini and Large"
    ignored: ClassVar[frozenset[str]] = Family.ignored | experts.TRAINING

    def settings(self, keys: Keys) -> dict[str, Any]:
        depth, every = keys.integer("num_hidden_layers"), _period(keys)
        types = parts.layer_types(keys, parts.repeated(every, depth))
        mixer = parts.heads(keys, head_dim=128) | {
            "qk_norm": True,
            "output_gate": True,
            "bias": keys.flag("attention_bias", False),
        }
        ropes = {parts.FULL: None, parts.SLIDING: parts.rope(keys, whole=True)}
        window = parts.required_window(keys, 1024)
        mixers = parts.full_and_sliding(mixer, ropes, window)
        # The code that these models were trained with has other routers; the class has this one.
        keys.only("score_func", "sigmoid")
        keys.only("route_norm", True)
        for name in ("n_group", "topk_group", "num_expert_groups", "num_limited_groups"):
            keys.only(name, 1)
        keys.harmless("load_balance_coeff", "use_grouped_mm")
        router = {
            "scores": "sigmoid",
            "choice_bias": True,
            "normalize": True,
            "normalize_eps": 1e-20,
            "scale": keys.number("route_scale", 1.0),
        }
        mixture = experts.mixture_settings(
            keys, router, experts=64, top_k=6, hidden="moe_intermediate_size", size=1408
        )
        mixture["shared_hidden"] = mixture["hidden"] * keys.integer("num_shared_experts", 2)
        dense = keys.integer("num_dense_layers", 1)
        feeds = experts.by_layer(keys, [i >= dense for i in range(depth)], mixture)
        layers = [
            LayerSettings(*mixers[kind], feed, label) for kind, (label, feed) in zip(types, feeds)
        ]
        sizes = parts.sizes(keys, tied=False) | {"norm_eps": keys.number("rms_norm_eps", 1e-5)}
        scaled = keys.flag("mup_enabled", False)
        return {
            **sizes,
            **laid_out(layers),
            "block": "sandwich",
            "embedding_scale": sizes["width"] ** 0.5 if scaled else 1.0,
        }

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "sandwich")
        mixers, feeds = mixers_of(model, AttentionConfig), experts.Feedforwards.of(model)
        windowed = [x for x in mixers if x.window is not None]
        found = {
            **parts.size_keys(model),
            **parts.head_keys(model, mixers),
            **feeds.dense_keys(),
            "attention_bias": only_value((x.bias for x in mixers), "bias") is True,
            "rope_parameters": parts.rope_keys(parts.required_rope(windowed)) if windowed else None,
            "sliding_window": parts.one_window(mixers) or parts.DEFAULT_WINDOW,
            "layer_types": parts.window_types(mixers),
            "mup_enabled": model.embedding_scale != 1,
            "num_dense_layers": feeds.dense_below,
        }
        if (mixture := feeds.mixture) is None:
            return found
        if mixture.shared_hidden is None or mixture.shared_hidden % mixture.hidden:
            raise Inexpressible(
                f"its shared expert has hidden {mixture.shared_hidden}, no multiple of"
                f" {mixture.hidden}"
            )
        return {
            **found,
            **experts.mixture_keys(mixture, "moe_intermediate_size"),
            "num_shared_experts": mixture.shared_hidden // mixture.hidden,
            "route_scale": mixture.router.scale,
        }

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        found = [r for names in NORMS.items() for r in norm(model, *names)]
        if isinstance(mixer, AttentionConfig):
            found += parts.attention_rules(model, mixer)
            found += linear("self_attn.gate_proj", "mixer.gate.proj")
        if isinstance(feedforward, MoEConfig):
            return found + experts.expert_rules(
                feedforward,
                router="router.gate",
                shared="shared_experts",
                choice_bias="expert_bias",
            )
        return found + parts.gated_rules(feedforward)


def _period(keys: Keys) -> int:
    every = keys.integer("global_attn_every_n_layers", 4)
    if every < 1:
        keys.refuse("global_attn_every_n_layers", f"must be at least 1, not {every}")
    return every
