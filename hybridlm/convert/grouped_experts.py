"""Mixtures of experts with a sigmoid router that chooses within groups: DeepSeek-V3 and its heirs."""

from typing import Any

from hybridlm.convert import experts, parts
from hybridlm.convert.family import Inexpressible, only_value
from hybridlm.convert.keys import Keys
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.models.settings import ModelConfig

#: `names` of `mixture_settings` for DeepSeek-V3 and for the classes that took its keys over.
DEEPSEEK = {
    "normalize": ("norm_topk_prob",),
    "experts": ("n_routed_experts", "num_local_experts"),
    "top_k": ("num_experts_per_tok",),
    "groups": ("n_group",),
    "shared": ("n_shared_experts",),
}


def mixture_settings(keys: Keys, names: dict[str, tuple[str, ...]], **defaults: Any) -> dict:
    """The settings of a mixture of experts with a sigmoid router and a bias of the choice.

    Args:
      names: by setting, what the class calls the key: its own name and others that it reads.
      defaults: by setting, the class's.
    """
    normalize = _read(keys.flag, names["normalize"], True)
    hidden = keys.integer("moe_intermediate_size", defaults["hidden"])
    shared = _read(keys.integer, names["shared"], 1)
    if shared < 1:
        keys.refuse(
            names["shared"][0], f"is {shared}: hybridlm has this family with a shared expert"
        )
    keys.only("scoring_func", "sigmoid")
    keys.only("topk_method", "noaux_tc")
    keys.only("moe_layer_freq", 1)
    keys.harmless("ep_size", "aux_loss_alpha", "seq_aux", "router_aux_loss_coef")
    return {
        "kind": "moe",
        "experts": _read(keys.integer, names["experts"], defaults["experts"]),
        "top_k": _read(keys.integer, names["top_k"], 8),
        "hidden": hidden,
        "activation": keys.choice("hidden_act", parts.ACTIVATIONS, "silu"),
        "router": {
            "scores": "sigmoid",
            "normalize": normalize,
            "normalize_eps": 1e-20 if normalize else 0.0,
            "scale": keys.number("routed_scaling_factor", defaults["scale"]),
            "choice_bias": True,
            "groups": _read(keys.integer, names["groups"], defaults["groups"]),
            "top_groups": keys.integer("topk_group", defaults["top_groups"]),
        },
        "shared_hidden": hidden * shared,
    }


def mixture_keys(mixtures: list[MoEConfig], names: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """The inverse of `mixture_settings`; nothing without a mixture."""
    if not mixtures:
        return {}
    x = only_value(mixtures, "the mixture of experts")
    if x.shared_hidden is None or x.shared_hidden % x.hidden:
        raise Inexpressible(
            f"its shared expert has hidden {x.shared_hidden}, no multiple of {x.hidden}"
        )
    found = {
        "normalize": x.router.normalize,
        "experts": x.experts,
        "top_k": x.top_k,
        "groups": x.router.groups,
        "shared": x.shared_hidden // x.hidden,
    }
    return {names[name][0]: value for name, value in found.items()} | {
        "moe_intermediate_size": x.hidden,
        "hidden_act": parts.THEIR_ACTIVATIONS[x.activation],
        "routed_scaling_factor": x.router.scale,
        "topk_group": x.router.top_groups,
    }


def feedforward_types(keys: Keys, depth: int, dense: int) -> list[str]:
    """Whether each layer is "dense" or "sparse"; the first ones are dense where they are not listed.

    Args:
      dense: how many of them, the class's default of `first_k_dense_replace`.
    """
    dense = keys.integer("first_k_dense_replace", dense)
    default = ["dense" if i < dense else "sparse" for i in range(depth)]
    types = keys.list("mlp_layer_types", depth, default)
    for name in types:
        if name not in ("dense", "sparse"):
            keys.refuse("mlp_layer_types", f"has {name!r}: this family has dense and sparse")
    return types


def feedforward_keys(model: ModelConfig, names: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """The keys of dense layers and of mixtures, but not which layers are which."""
    mixtures, dense = experts.mixtures_and_dense(model)
    found = mixture_keys([x for x in mixtures if x is not None], names)
    if gated := experts.first_of(dense):
        found["intermediate_size"] = gated.hidden
        found["hidden_act"] = parts.THEIR_ACTIVATIONS[gated.activation]
    return found


def _read(read: Any, names: tuple[str, ...], default: Any) -> Any:
    """The value under the first of several names of one key that is there."""
    for name in reversed(names):
        default = read(name, default)
    return default
