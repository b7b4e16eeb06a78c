"""Nemotron-H (arXiv 2504.03624) and Nemotron 3: mixers and feed-forwards are layers of their own."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import parts, state_space
from hybridlm.convert.family import Family, Inexpressible, norm, not_none, only_value, require_block
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule, linear, rule
from hybridlm.convert.transforms import TRANSPOSED, Stacked, chain
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.absent import NoFeedForwardConfig
from hybridlm.models.feedforward.dense import PlainConfig
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.absent import NoMixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.mixers.mamba2 import Mamba2Config
from hybridlm.models.settings import ModelConfig

NAMES = {
    "heads": "mamba_num_heads",
    "head_dim": "mamba_head_dim",
    "state_dim": "ssm_state_size",
    "groups": "n_groups",
    "conv_width": "conv_kernel",
    "conv_bias": "use_conv_bias",
}
DEFAULTS = {"heads": 128, "state_dim": 128, "groups": 8, "conv_width": 4, "conv_bias": True}
MAMBA, ATTENTION, MLP, MOE = "linear_attention", "full_attention", "mlp", "moe"
LETTERS = {"M": MAMBA, "*": ATTENTION, "-": MLP, "E": MOE}
OLD_NAMES = {"mamba": MAMBA, "attention": ATTENTION}
#: Keys that are read where a layer is of the kind.
OF_KIND = {
    MAMBA: (*NAMES.values(), "mamba_hidden_act", "time_step_min", "use_bias"),
    ATTENTION: ("num_attention_heads", "num_key_value_heads", "head_dim"),
    MLP: ("intermediate_size", "mlp_hidden_act", "mlp_bias"),
    MOE: (
        "moe_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "moe_latent_size",
        "n_routed_experts",
        "num_local_experts",
        "num_experts_per_tok",
        "norm_topk_prob",
        "routed_scaling_factor",
        "n_group",
        "topk_group",
    ),
}
NORMALIZE_EPS = 1e-20


class NemotronH(Family):
    """Pre-norm layers of one half each: Mamba-2, attention without positions, or a feed-forward."""

    architecture: ClassVar[str] = "NemotronHForCausalLM"
    model_type: ClassVar[str] = "nemotron_h"
    models: ClassVar[str] = "Nemotron-H, Nemotron Nano 2, Nemotron 3 (mixtures of experts)"
    stem: ClassVar[str] = "backbone."
    embedding: ClassVar[str] = "embeddings"
    final_norm: ClassVar[str] = "norm_f"

    def settings(self, keys: Keys) -> dict[str, Any]:
        sizes = parts.sizes(keys, tied=False, eps="layer_norm_epsilon")
        sizes["norm_eps"] = keys.number("layer_norm_epsilon", 1e-5)
        sizes["tie_embeddings"] = False  # transformers does not tie them, whatever the config says
        keys.only("sliding_window", None)
        keys.only("attention_bias", False, why="the class has no such biases")
        keys.only("num_nextn_predict_layers", 0)
        keys.harmless("use_mamba_kernels", "mamba_ssm_cache_dtype", "num_logits_to_keep", "expand")
        keys.harmless("mamba_proj_bias", "time_step_limit", "time_step_max", "time_step_floor")
        keys.harmless("mtp_layers_block_type", "mtp_hybrid_override_pattern", "num_hidden_layers")
        keys.harmless("moe_shared_expert_overlap", "n_shared_experts")
        # The class reads layer_norm_epsilon, and its attention has no positions.
        keys.harmless("norm_eps", "rope_theta", "partial_rotary_factor")
        makers = {MAMBA: _mamba, ATTENTION: _attention, MLP: _mlp, MOE: _moe}
        made = {kind: make(keys) for kind, make in makers.items() if kind in _types(keys)}
        for kind in makers.keys() - made.keys():
            keys.harmless(*OF_KIND[kind])
        return sizes | laid_out([made[kind] for kind in _types(keys)])

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        types = [
            _type(i, mixer, feedforward)
            for i, ((_, mixer), feedforward) in enumerate(
                zip(model.layer_mixers(), model.layer_feedforwards())
            )
        ]
        halves: list[Any] = [x for _, x in model.layer_mixers()] + model.layer_feedforwards()
        mamba = [x for x in halves if isinstance(x, Mamba2Config)]
        attention = [x for x in halves if isinstance(x, AttentionConfig)]
        dense = [x for x in halves if isinstance(x, PlainConfig)]
        mixtures = [x for x in halves if isinstance(x, MoEConfig)]
        found = parts.size_keys(model, "layer_norm_epsilon") | {"layers_block_type": types}
        del found["num_hidden_layers"]
        if mamba:
            found |= state_space.mamba2_keys(model, mamba, NAMES)
            found["use_bias"] = mamba[0].bias is True
            found["time_step_min"] = (mamba[0].dt_limits or (0.0,))[0]
        if attention:
            found |= parts.head_keys(model, attention)
        if dense:
            found["intermediate_size"] = only_value((x.hidden for x in dense), "hidden")
            found["mlp_bias"] = dense[0].bias
        if mixtures:
            found |= _moe_keys(only_value(mixtures, "the experts"))
        for x in dense + mixtures:
            found["mlp_hidden_act"] = parts.THEIR_ACTIVATIONS[x.activation]
        return found

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        if isinstance(mixer, Mamba2Config):
            rules = state_space.mamba2_rules(model, mixer, "mixer")
        elif isinstance(mixer, AttentionConfig):
            rules = parts.attention_rules(model, mixer, theirs="mixer")
        elif isinstance(feedforward, MoEConfig):
            rules = _moe_rules(feedforward)
        else:
            rules = _plain_rules("mixer", "mlp", feedforward.bias)
        ours = "mlp_norm" if isinstance(mixer, NoMixerConfig) else "mixer_norm"
        return [*norm(model, "norm", ours), *rules]


def _types(keys: Keys) -> list[str]:
    """The type of each layer."""
    listed = keys.list("layers_block_type", default=keys.list("layer_types", default=None))
    letters = keys.text("hybrid_override_pattern", None)
    if listed is None and letters is None:
        keys.refuse("layers_block_type", "is missing")
    if listed is None:
        listed = [LETTERS.get(letter, letter) for letter in letters]
    for name in listed:
        if OLD_NAMES.get(name, name) not in LETTERS.values():
            keys.refuse(
                "layers_block_type", f"has {name!r}: this family has {', '.join(LETTERS.values())}"
            )
    return [OLD_NAMES.get(name, name) for name in listed]


def _type(index: int, mixer: MixerConfig, feedforward: FeedForwardConfig) -> str:
    """The type of a layer.

    Raises:
      Inexpressible: if it is none of the family's.
    """
    kinds = {Mamba2Config: MAMBA, AttentionConfig: ATTENTION, PlainConfig: MLP, MoEConfig: MOE}
    for half, other in ((mixer, feedforward), (feedforward, mixer)):
        if type(half) in kinds and isinstance(other, NoMixerConfig | NoFeedForwardConfig):
            return kinds[type(half)]
    raise Inexpressible(
        f"layer {index} is {mixer.kind_name} with {feedforward.kind_name}, not one Mamba-2 mixer,"
        " attention, plain feed-forward or mixture of experts alone"
    )


def _mamba(keys: Keys) -> LayerSettings:
    keys.only("mamba_hidden_act", "silu", "swish")
    mixer = state_space.mamba2(keys, NAMES, DEFAULTS)
    lowest = keys.number("time_step_min", 0.001)  # of every step, in transformers
    mixer |= {
        "head_dim": keys.integer("mamba_head_dim", 64),
        "bias": keys.flag("use_bias", False),
        "dt_limits": (lowest,) if lowest > 0 else None,
    }
    return LayerSettings("mamba", mixer, None)


def _attention(keys: Keys) -> LayerSettings:
    return LayerSettings("full", parts.heads(keys, head_dim=128) | {"rope": None}, None)


def _mlp(keys: Keys) -> LayerSettings:
    feed = {
        "kind": "plain",
        "hidden": keys.integer("intermediate_size"),
        "activation": keys.choice("mlp_hidden_act", parts.ACTIVATIONS, "relu2"),
        "bias": keys.flag("mlp_bias", False),
    }
    return LayerSettings("none", None, feed)


def _moe(keys: Keys) -> LayerSettings:
    if keys.flag("mlp_bias", False):
        keys.refuse("mlp_bias", "is true: hybridlm has shared experts without biases")
    normalize = keys.flag("norm_topk_prob", True)
    router = {
        "scores": "sigmoid",
        "choice_bias": True,
        "normalize": normalize,
        "normalize_eps": NORMALIZE_EPS if normalize else 0.0,
        "scale": keys.number("routed_scaling_factor", 1.0),
        "groups": keys.integer("n_group", 1),
        "top_groups": keys.integer("topk_group", 1),
    }
    feed = {
        "kind": "moe",
        "experts": keys.integer("n_routed_experts", keys.integer("num_local_experts", 8)),
        "top_k": keys.integer("num_experts_per_tok", 2),
        "hidden": keys.integer("moe_intermediate_size", 7688),
        "shared_hidden": keys.integer("moe_shared_expert_intermediate_size", 7688),
        "latent": keys.integer("moe_latent_size", None),
        "activation": keys.choice("mlp_hidden_act", parts.ACTIVATIONS, "relu2"),
        "gated": False,
        "router": router,
    }
    return LayerSettings("none", None, feed, "moe")


def _moe_keys(moe: MoEConfig) -> dict[str, Any]:
    if moe.shared_hidden is None:
        raise Inexpressible("its mixtures have no shared expert")
    return not_none(
        {
            "n_routed_experts": moe.experts,
            "num_experts_per_tok": moe.top_k,
            "moe_intermediate_size": moe.hidden,
            "moe_shared_expert_intermediate_size": moe.shared_hidden,
            "moe_latent_size": moe.latent,
            "norm_topk_prob": moe.router.normalize,
            "routed_scaling_factor": moe.router.scale,
            "n_group": moe.router.groups,
            "topk_group": moe.router.top_groups,
        }
    )


def _plain_rules(theirs: str, ours: str, bias: bool = False) -> list[Rule]:
    return [
        r
        for name in ("up", "down")
        for r in linear(f"{theirs}.{name}_proj", f"{ours}.{name}", bias=bias)
    ]


def _moe_rules(moe: MoEConfig) -> list[Rule]:
    rules = [
        rule("mixer.gate.weight", "mlp.router.kernel", TRANSPOSED),
        rule("mixer.gate.e_score_correction_bias", "mlp.router.choice_bias"),
        *_plain_rules("mixer.shared_experts", "mlp.shared"),
    ]
    for name in ("up", "down"):
        theirs = [f"mixer.experts.{e}.{name}_proj.weight" for e in range(moe.experts)]
        rules.append(rule(theirs, f"mlp.experts.{name}", chain(Stacked(), TRANSPOSED)))
    if moe.latent is not None:
        rules += linear("mixer.fc1_latent_proj", "mlp.into_latent")
        rules += linear("mixer.fc2_latent_proj", "mlp.from_latent")
    return rules
