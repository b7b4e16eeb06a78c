"""LFM2 (arXiv 2511.23404): gated short convolutions and a few layers of grouped-query attention."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import experts, parts
from hybridlm.convert.family import Family, Inexpressible, norm, only_value, require_block
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule, linear, rule
from hybridlm.convert.transforms import TRANSPOSED, ConvKernel, Split, chain
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.mixers.short_conv import ShortConvConfig
from hybridlm.models.settings import ModelConfig

CONV = "conv"


class LFM2(Family):
    """Pre-norm blocks of short convolutions or attention with norms of queries and keys."""

    architecture: ClassVar[str] = "Lfm2ForCausalLM"
    model_type: ClassVar[str] = "lfm2"
    models: ClassVar[str] = "LFM2, LFM2.5, dense"
    final_norm: ClassVar[str] = "embedding_norm"

    def settings(self, keys: Keys) -> dict[str, Any]:
        sizes = parts.sizes(keys, tied=True, eps="norm_eps")
        sizes["norm_eps"] = keys.number("norm_eps", 1e-5)
        sizes["tie_embeddings"] = keys.flag("tie_embedding", sizes["tie_embeddings"])
        depth = keys.integer("num_hidden_layers")
        attending = keys.list("full_attn_idxs", default=list(range(depth)))
        default = [parts.FULL if i in attending else CONV for i in range(depth)]
        types = keys.list("layer_types", depth, default=default)
        for name in types:
            if name not in (parts.FULL, CONV):
                keys.refuse("layer_types", f"has {name!r}: this family has {parts.FULL}, {CONV}")
        keys.harmless("theta", "block_dim", "block_use_swiglu", "block_norm_eps", "conv_dim")
        keys.harmless("conv_dim_out", "conv_use_xavier_init", "block_use_xavier_init")
        keys.harmless("block_mlp_init_scale", "block_out_init_scale", "num_heads", "use_pos_enc")
        attention = parts.heads(keys, kv_heads=8) | {
            "rope": parts.rope(keys, 1_000_000.0, whole=True),
            "qk_norm": True,
        }
        conv = {
            "kind": "short_conv",
            "conv_width": keys.integer("conv_L_cache", 3),
            "bias": keys.flag("conv_bias", False),
        }
        made = {parts.FULL: ("full", attention), CONV: ("conv", conv)}
        layers = [
            LayerSettings(*made[kind], feed, label)
            for kind, (label, feed) in zip(types, self.feedforwards(keys, depth))
        ]
        return sizes | laid_out(layers)

    def feedforwards(self, keys: Keys, depth: int) -> list[tuple[str, dict[str, Any]]]:
        """The name and the settings of each layer's feed-forward."""
        return [("mlp", {"kind": "swiglu", "hidden": _hidden(keys)})] * depth

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        found = {
            **parts.size_keys(model, "norm_eps"),
            **self.feedforward_keys(model),
            "layer_types": [],
            **parts.NO_HEADS,
        }
        attention, convs = [], []
        for i, (_, mixer) in enumerate(model.layer_mixers()):
            if isinstance(mixer, AttentionConfig):
                attention.append(mixer)
            elif isinstance(mixer, ShortConvConfig):
                convs.append(mixer)
            else:
                raise Inexpressible(
                    f"layer {i} is {mixer.mechanism}, not a short convolution or attention"
                )
            found["layer_types"].append(parts.FULL if mixer in attention else CONV)
        if attention:
            found |= parts.head_keys(model, attention)
            found["rope_parameters"] = parts.rope_keys(parts.required_rope(attention))
        if convs:
            found["conv_L_cache"] = only_value((x.conv_width for x in convs), "conv_width")
            found["conv_bias"] = only_value((x.bias for x in convs), "bias")
        return found

    def feedforward_keys(self, model: ModelConfig) -> dict[str, Any]:
        """The inverse of `feedforwards`."""
        size = parts.gated_keys(model)["intermediate_size"]
        return {"intermediate_size": size, "block_auto_adjust_ff_dim": False}

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        rules = [
            *norm(model, "operator_norm", "mixer_norm"),
            *norm(model, "ffn_norm", "mlp_norm"),
        ]
        if isinstance(feedforward, MoEConfig):
            rules += experts.expert_rules(
                feedforward,
                "feed_forward",
                matrices=experts.MIXTRAL,
                choice_bias="expert_bias",
            )
        else:
            for ours, theirs in experts.MIXTRAL.items():
                rules += linear(f"feed_forward.{theirs}", f"mlp.{ours}")
        if isinstance(mixer, AttentionConfig):
            return [*rules, *_attention_rules()]
        return [*rules, *_conv_rules(model, mixer)]


class LFM2MoE(LFM2):
    """As LFM2; layers above the lowest have experts, which a bias balances."""

    architecture: ClassVar[str] = "Lfm2MoeForCausalLM"
    model_type: ClassVar[str] = "lfm2_moe"
    models: ClassVar[str] = "LFM2 8B-A1B, LFM2.5, mixtures of experts"
    ignored: ClassVar[frozenset[str]] = Family.ignored | experts.TRAINING

    def feedforwards(self, keys: Keys, depth: int) -> list[tuple[str, dict[str, Any]]]:
        normalize = keys.flag("norm_topk_prob", True)
        router = {
            "scores": "sigmoid",
            "choice_bias": keys.flag("use_expert_bias", True),
            "normalize": normalize,
            "normalize_eps": 1e-6 if normalize else 0.0,
            "scale": keys.number("routed_scaling_factor", 1.0),
        }
        keys.only("hidden_act", "silu", why="the class has no other activation")
        mixture = experts.mixture_settings(
            keys, router, experts=32, top_k=4, hidden="moe_intermediate_size", size=1792
        )
        dense = keys.integer("num_dense_layers", 2)
        return experts.by_layer(keys, [i >= dense for i in range(depth)], mixture)

    def feedforward_keys(self, model: ModelConfig) -> dict[str, Any]:
        feeds = experts.Feedforwards.of(model)
        found = {**feeds.dense_keys(), "num_dense_layers": feeds.dense_below}
        if feeds.mixture is None:
            return found
        router = feeds.mixture.router
        return {
            **found,
            **experts.mixture_keys(feeds.mixture, "moe_intermediate_size"),
            "use_expert_bias": router.choice_bias,
            "norm_topk_prob": router.normalize,
            "routed_scaling_factor": router.scale,
        }


def _hidden(keys: Keys) -> int:
    """The size of the feed-forwards' hidden layer, which the class derives."""
    size = keys.integer("block_ff_dim", keys.integer("intermediate_size", 12288))
    factor = keys.number("block_ffn_dim_multiplier", 1.0)
    multiple = keys.integer("block_multiple_of", 256)
    if not keys.flag("block_auto_adjust_ff_dim", True):
        return size
    size = int(factor * int(2 * size / 3))
    return multiple * ((size + multiple - 1) // multiple)


def _attention_rules() -> list[Rule]:
    rules = [r for x in ("q", "k", "v") for r in linear(f"self_attn.{x}_proj", f"mixer.{x}")]
    rules += linear("self_attn.out_proj", "mixer.out")
    return rules + [
        rule(f"self_attn.{x}_layernorm.weight", f"mixer.{x}_norm.scale") for x in ("q", "k")
    ]


def _conv_rules(model: ModelConfig, mixer: ShortConvConfig) -> list[Rule]:
    into = [f"mixer.{name}" for name in ("input_gate", "output_gate", "value")]
    thirds = Split((model.width,) * 3)
    rules = [
        rule("conv.in_proj.weight", [f"{x}.kernel" for x in into], chain(thirds, TRANSPOSED)),
        rule("conv.conv.weight", "mixer.conv.kernel", ConvKernel()),
        *linear("conv.out_proj", "mixer.out", bias=mixer.bias),
    ]
    if mixer.bias:
        rules.append(rule("conv.in_proj.bias", [f"{x}.bias" for x in into], thirds))
        rules.append(rule("conv.conv.bias", "mixer.conv.bias"))
    return rules
