"""Kimi Linear (arXiv 2510.26692): Kimi Delta Attention and latent attention without positions."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import experts, grouped_experts, latent, parts
from hybridlm.convert.family import Family, Inexpressible, norm, only_value, require_block
from hybridlm.convert.gated_delta import LINEAR
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule, linear, rule
from hybridlm.convert.transforms import SAME, ConvKernel, Reshaped
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.delta import Sizes
from hybridlm.models.mixers.kda import KDAConfig
from hybridlm.models.mixers.mla import MLAConfig
from hybridlm.models.settings import ModelConfig

NAMES = {
    "normalize": ("moe_renormalize", "norm_topk_prob"),
    "experts": ("num_experts", "num_local_experts"),
    "top_k": ("num_experts_per_token", "num_experts_per_tok"),
    "groups": ("num_expert_group", "n_group"),
    "shared": ("num_shared_experts", "n_shared_experts"),
}


class KimiLinear(Family):
    """Three layers of Kimi Delta Attention to one of latent attention; experts but in the first."""

    architecture: ClassVar[str] = "KimiLinearForCausalLM"
    model_type: ClassVar[str] = "kimi_linear"
    models: ClassVar[str] = "Kimi Linear"
    #: transformers saves dense layers by the name of those with experts.
    aliases: ClassVar[tuple[tuple[str, str], ...]] = ((r"\.mlp\.", ".block_sparse_moe."),)
    ignored: ClassVar[frozenset[str]] = Family.ignored | experts.TRAINING

    def settings(self, keys: Keys) -> dict[str, Any]:
        depth = keys.integer("num_hidden_layers")
        keys.only("tie_word_embeddings", False)
        keys.only("mla_use_nope", True, why="the class has no RoPE")
        keys.only("num_nextn_predict_layers", 0, why="the class has no such layers")
        keys.only("moe_router_activation_func", "sigmoid")
        keys.only("use_grouped_topk", True)
        keys.harmless("model_max_length", "rope_theta", "rope_scaling", "num_mtp_layers")
        keys.only("hidden_act", "silu", "swish", why="the convolutions are followed by silu")
        types, kda = _types(keys, depth)
        mlps = grouped_experts.feedforward_types(keys, depth, 1)
        mixers = {
            LINEAR: ("kda", kda),
            parts.FULL: (
                "mla",
                latent.latent_settings(keys, heads=32, q_rank=None) | {"rope": None},
            ),
        }
        gated = parts.gated(keys) if "dense" in mlps else None
        keys.harmless("intermediate_size")
        mixture = grouped_experts.mixture_settings(
            keys, NAMES, experts=256, hidden=1024, scale=2.446, groups=1, top_groups=1
        )
        feeds = {"dense": (gated, "mlp"), "sparse": (mixture, "moe")}
        layers = [LayerSettings(*mixers[m], *feeds[f]) for m, f in zip(types, mlps)]
        sizes = parts.sizes(keys, tied=False) | {"norm_eps": keys.number("rms_norm_eps", 1e-5)}
        return sizes | laid_out(layers)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        if model.tie_embeddings:
            raise Inexpressible("its embedding is its head: the class has a matrix for each")
        types, delta, attention = [], [], []
        for i, (_, mixer) in enumerate(model.layer_mixers()):
            if isinstance(mixer, KDAConfig):
                types.append(LINEAR)
                delta.append(mixer)
            elif isinstance(mixer, MLAConfig):
                types.append(parts.FULL)
                attention.append(mixer)
            else:
                raise Inexpressible(f"layer {i} is {mixer.mechanism}, not kda or mla")
        mixtures, _ = experts.mixtures_and_dense(model)
        found = {
            **parts.size_keys(model),
            **grouped_experts.feedforward_keys(model, NAMES),
            "layer_types": types,
            "mlp_layer_types": ["dense" if x is None else "sparse" for x in mixtures],
        }
        if delta:
            sizes = only_value((x.sizes(model.width) for x in delta), "sizes")
            found["linear_num_heads"], found["linear_head_dim"] = sizes.heads, sizes.key_size
            widths = (x.conv_width for x in delta)
            found["linear_conv_kernel_dim"] = only_value(widths, "conv_width")
        return found | (latent.latent_keys(attention) if attention else {})

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        found = [r for names in parts.PRENORM.items() for r in norm(model, *names)]
        if isinstance(mixer, MLAConfig):
            found += latent.latent_rules(mixer)
        elif isinstance(mixer, KDAConfig):
            found += delta_rules(mixer.sizes(model.width))
        if isinstance(feedforward, MoEConfig):
            return found + experts.expert_rules(
                feedforward,
                "block_sparse_moe",
                matrices=experts.MIXTRAL,
                shared="shared_experts",
            )
        return found + parts.gated_rules(feedforward, "block_sparse_moe")


def delta_rules(sizes: Sizes, theirs: str = "self_attn", *, a_log: bool = True) -> list[Rule]:
    """The rules of Kimi Delta Attention; with `a_log` that tensor has four axes, of which three are 1."""
    heads, size = sizes.heads, sizes.key_size
    projections = {
        "q_proj": "q",
        "k_proj": "k",
        "v_proj": "v",
        "b_proj": "beta",
        "f_a_proj": "decay.proj.down",
        "f_b_proj": "decay.proj.up",
        "g_a_proj": "output.gate.down",
        "g_b_proj": "output.gate.up",
        "o_proj": "out",
    }
    return [
        *(r for name, o in projections.items() for r in linear(f"{theirs}.{name}", f"mixer.{o}")),
        *(
            rule(f"{theirs}.{x}_conv1d.weight", f"mixer.{x}_conv.kernel", ConvKernel())
            for x in ("q", "k", "v")
        ),
        rule(
            f"{theirs}.A_log",
            "mixer.decay.a_log",
            Reshaped((heads,), (1, 1, heads, 1)) if a_log else SAME,
        ),
        rule(f"{theirs}.dt_bias", "mixer.decay.dt_bias", Reshaped((heads, size), (heads * size,))),
        rule(f"{theirs}.o_norm.weight", "mixer.output.norm.norm.scale"),
    ]


def _types(keys: Keys, depth: int) -> tuple[list[str], dict[str, Any]]:
    """The type of each layer, and the settings of Kimi Delta Attention.

    The published checkpoints have them in an object whose lists count layers from 1.
    """
    kda = {
        "kind": "kda",
        "heads": keys.integer("linear_num_heads", 32),
        "head_dim": keys.integer("linear_head_dim", 128),
        "conv_width": keys.integer("linear_conv_kernel_dim", 4),
    }
    default = [parts.FULL if i and i % 4 == 0 else LINEAR for i in range(depth)]
    own = keys.object("linear_attn_config", None)
    if own is not None:
        kda["heads"] = own.integer("num_heads", kda["heads"])
        kda["head_dim"] = own.integer("head_dim", kda["head_dim"])
        kda["conv_width"] = own.integer("short_conv_kernel_size", kda["conv_width"])
        full = own.list("full_attn_layers", default=None)
        linear_layers = own.list("kda_layers", default=None)
        own.finish()
        if full is not None and linear_layers is not None:
            if sorted([*full, *linear_layers]) != list(range(1, depth + 1)):
                own.refuse("full_attn_layers", f"and kda_layers do not share out 1 to {depth}")
            default = [parts.FULL if i + 1 in full else LINEAR for i in range(depth)]
    return parts.layer_types(keys, default, (LINEAR, parts.FULL)), kda
