"""What families share: attention, RoPE and feed-forwards as transformers writes them, both ways."""

import math
from collections.abc import Sequence
from typing import Any

from hybridlm.convert.family import Inexpressible, not_none, only_value
from hybridlm.convert.keys import Keys
from hybridlm.convert.table import Rule, linear, rule
from hybridlm.convert.transforms import SAME, Transform
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.dense import DenseConfig, GatedConfig, GeGLUConfig, SwiGLUConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.positional import RopeConfig
from hybridlm.models.settings import ModelConfig

#: Names of activations in transformers, and ours.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
THEIR_ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
FULL, SLIDING = "full_attention", "sliding_attention"

# --- sizes --------------------------------------------------------------------------------------


def sizes(keys: Keys, *, tied: bool, eps: float | str = "rms_norm_eps") -> dict[str, Any]:
    """Settings that nearly all configs name alike; `tied` is the class's default.

    Args:
      eps: the key of the epsilon, whose default is 1e-6.
    """
    return {
        "width": keys.integer("hidden_size"),
        "vocab_size": keys.integer("vocab_size"),
        "norm_eps": keys.number(eps, 1e-6),
        "tie_embeddings": keys.flag("tie_word_embeddings", tied),
    }


def size_keys(model: ModelConfig, eps: str = "rms_norm_eps") -> dict[str, Any]:
    """The inverse of `sizes`."""
    return {
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "vocab_size": model.vocab_size,
        eps: model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
    }


# --- attention ----------------------------------------------------------------------------------


def heads(keys: Keys, *, head_dim: int | None = None) -> dict[str, Any]:
    """heads, kv_heads and head_dim of an attention mixer.

    Args:
      head_dim: the class's default; None is hidden_size // num_attention_heads.
    """
    count, width = keys.integer("num_attention_heads"), keys.integer("hidden_size")
    return {
        "kind": "attention",
        "heads": count,
        "kv_heads": keys.integer("num_key_value_heads", count),
        "head_dim": keys.integer("head_dim", head_dim or width // count),
    }


def head_keys(model: ModelConfig, layers: Sequence[AttentionConfig]) -> dict[str, Any]:
    """The inverse of `heads`.

    Raises:
      Inexpressible: if two layers differ.
    """
    return {
        "num_attention_heads": only_value((x.heads for x in layers), "heads"),
        "num_key_value_heads": only_value((x.kv_heads for x in layers), "kv_heads"),
        "head_dim": only_value((x.head_size(model.width) for x in layers), "head_dim"),
    }


def attention_rules(
    model: ModelConfig,
    mixer: AttentionConfig,
    *,
    theirs: str = "self_attn",
    rows: dict[str, Transform] | None = None,
) -> list[Rule]:
    """The rules of q, k, v, the output projection and the norms of q and k.

    Args:
      rows: transforms of the rows of "q" and "k", before their weights are transposed.
    """
    rows = rows or {}
    qkv, out = mixer.bias in (True, "qkv"), mixer.bias is True
    rules = [
        r
        for name in ("q", "k", "v")
        for r in linear(
            f"{theirs}.{name}_proj",
            f"mixer.{name}",
            bias=qkv,
            transform=rows.get(name, SAME),
        )
    ]
    rules += linear(f"{theirs}.o_proj", "mixer.out", bias=out)
    if mixer.qk_norm and mixer.qk_norm != "l2":
        rules += [rule(f"{theirs}.{x}_norm.weight", f"mixer.{x}_norm.scale") for x in ("q", "k")]
    return rules


# --- layers of several kinds --------------------------------------------------------------------


def layer_types(keys: Keys, default: Sequence[str], known: Sequence[str] = (FULL, SLIDING)) -> list:
    """The type of each layer.

    Args:
      default: the class's, one entry a layer.

    Raises:
      ConvertError: for a type that is not `known`, or another number of layers.
    """
    types = keys.list("layer_types", len(default), list(default))
    for name in types:
        if name not in known:
            keys.refuse("layer_types", f"has {name!r}: this family has {', '.join(known)}")
    return types


def window_types(layers: Sequence[AttentionConfig]) -> list[str]:
    """The type of each layer: with a window or without."""
    return [FULL if x.window is None else SLIDING for x in layers]


def one_window(layers: Sequence[AttentionConfig]) -> int | None:
    """The window of all layers that have one; None if none has.

    Raises:
      Inexpressible: if two have different windows.
    """
    found = {i: x.window for i, x in enumerate(layers) if x.window is not None}
    for i, window in found.items():
        if window != next(iter(found.values())):
            raise Inexpressible(f"layer {i} has another window ({window}) than the layers below")
    return next(iter(found.values()), None)


# --- rope ---------------------------------------------------------------------------------------

_DEFAULT = {"rope_type": "default"}


def rope(keys: Keys, theta: float = 10_000.0, *, layer_type: str | None = None) -> dict[str, Any]:
    """The settings of RoPE, from `rope_parameters` (transformers 5) or `rope_theta`, `rope_scaling`.

    Args:
      theta: the class's default.
      layer_type: of the layers, where `rope_parameters` has an object for each type.
    """
    theta = keys.number("rope_theta", theta)
    fraction = keys.number("partial_rotary_factor", 1.0)
    length = keys.integer("max_position_embeddings", None)
    length = keys.integer("original_max_position_embeddings", length)
    own = keys.object("rope_parameters", None)
    old = keys.object("rope_scaling", None)
    given = own if own is not None else old
    if given is None:
        return _rope(theta, fraction)
    if layer_type is not None and isinstance(given.values.get(layer_type), dict):
        given = given.object(layer_type)
    kind = given.text("rope_type", given.text("type", "default"))
    theta = given.number("rope_theta", theta)
    fraction = given.number("partial_rotary_factor", fraction)
    extra: dict[str, Any] = {}
    if kind == "llama3":
        extra["llama3"] = {
            "factor": given.number("factor"),
            "length": given.integer("original_max_position_embeddings", length),
            "low": given.number("low_freq_factor"),
            "high": given.number("high_freq_factor"),
        }
    elif kind == "linear":
        extra["linear"] = {"factor": given.number("factor")}
    elif kind == "yarn":
        extra["yarn"] = _yarn(given, length, keys.integer("max_position_embeddings", None))
    elif kind != "default":
        given.refuse(
            "rope_type", f"is {kind!r}: hybridlm has RoPE without scaling, linear, llama3 and yarn"
        )
    given.harmless("mrope_section", "mrope_interleaved")
    given.finish()
    return _rope(theta, fraction) | extra


def _rope(theta: float, fraction: float) -> dict[str, Any]:
    return {"theta": theta} | ({} if fraction == 1 else {"fraction": fraction})


def _yarn(given: Keys, length: int | None, new: int | None) -> dict[str, Any]:
    length = given.integer("original_max_position_embeddings", length)
    if length is None:
        given.refuse("original_max_position_embeddings", "is missing")
    factor = given.number("factor", None)
    if factor is None and new is None:
        given.refuse("factor", "is missing")
    found = {"factor": new / length if factor is None else factor, "length": length}
    found["fast"] = given.number("beta_fast", 32.0) or 32.0
    found["slow"] = given.number("beta_slow", 1.0) or 1.0
    found["truncate"] = given.flag("truncate", True)
    scale, scale_all = given.number("mscale", None), given.number("mscale_all_dim", None)
    attention = given.number("attention_factor", None)
    if attention is None and scale and scale_all:
        grows = 0.1 * math.log(found["factor"]) if found["factor"] > 1 else 0.0
        attention = (scale * grows + 1) / (scale_all * grows + 1)
    return found | not_none({"attention": attention})


def rope_keys(rope: RopeConfig) -> dict[str, Any]:
    """The inverse of `rope`: the object `rope_parameters`."""
    found: dict[str, Any] = {"rope_theta": rope.theta}
    if rope.fraction != 1:
        found["partial_rotary_factor"] = rope.fraction
    if rope.llama3:
        x = rope.llama3
        return found | {
            "rope_type": "llama3",
            "factor": x.factor,
            "original_max_position_embeddings": x.length,
            "low_freq_factor": x.low,
            "high_freq_factor": x.high,
        }
    if rope.linear:
        return found | {"rope_type": "linear", "factor": rope.linear.factor}
    if rope.yarn:
        x = rope.yarn
        return found | not_none(
            {
                "rope_type": "yarn",
                "factor": x.factor,
                "original_max_position_embeddings": x.length,
                "beta_fast": x.fast,
                "beta_slow": x.slow,
                "attention_factor": x.attention,
                "truncate": None if x.truncate else False,
            }
        )
    return found | _DEFAULT


# --- feed-forwards ------------------------------------------------------------------------------


def gated(
    keys: Keys,
    hidden: str = "intermediate_size",
    activation: str = "hidden_act",
    *,
    default: str = "silu",
    bias: bool = False,
) -> dict[str, Any]:
    """The settings of a gated feed-forward.

    Args:
      hidden, activation: the keys' names.
      default: the class's activation.
    """
    act = keys.choice(activation, ACTIVATIONS, default)
    size = keys.integer(hidden)
    if act == "silu" and not bias:
        return {"kind": "swiglu", "hidden": size}
    if act == "gelu_tanh" and not bias:
        return {"kind": "geglu", "hidden": size}
    return {"kind": "gated", "hidden": size, "activation": act, "bias": bias}


def gated_keys(
    model: ModelConfig, hidden: str = "intermediate_size", activation: str = "hidden_act"
) -> dict[str, Any]:
    """The inverse of `gated`, for a model whose layers all have one.

    Raises:
      Inexpressible: if a layer has another feed-forward, or two differ.
    """
    layers = model.layer_feedforwards()
    for i, feedforward in enumerate(layers):
        if not isinstance(feedforward, SwiGLUConfig | GeGLUConfig | GatedConfig):
            raise Inexpressible(
                f"layer {i} has the feed-forward {feedforward.kind_name}, not gated"
            )
    found = only_value(layers, "the feed-forward")
    return {hidden: found.hidden, activation: THEIR_ACTIVATIONS[found.activation]}


def gated_rules(feedforward: FeedForwardConfig, theirs: str = "mlp") -> list[Rule]:
    """The rules of a gated feed-forward."""
    bias = isinstance(feedforward, DenseConfig) and feedforward.bias
    return [
        r
        for name in ("gate", "up", "down")
        for r in linear(f"{theirs}.{name}_proj", f"mlp.{name}", bias=bias)
    ]
