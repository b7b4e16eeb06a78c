"""What families share: attention, RoPE and feed-forwards as transformers writes them, both ways."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hybridlm.convert.family import Inexpressible, norm, not_none, only_value
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings
from hybridlm.convert.table import Rule, linear, rule
from hybridlm.convert.transforms import SAME, HalvesFromPairs, Transform
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
#: Written where no layer has a window and the class needs the key.
DEFAULT_WINDOW = 4096
#: For a model without attention: its class still reads a number of heads.
NO_HEADS = {"num_attention_heads": 1, "num_key_value_heads": 1}
#: Settings of the kinds of gated feed-forwards.
Gated = SwiGLUConfig | GeGLUConfig | GatedConfig

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


def rounded(factor: float) -> float:
    """To 12 digits: a factor that a config.json gives by another number is not exact."""
    return float(f"{factor:.12g}")


# --- attention ----------------------------------------------------------------------------------


def heads(
    keys: Keys, *, head_dim: int | None = None, kv_heads: int | None = None
) -> dict[str, Any]:
    """heads, kv_heads and head_dim of an attention mixer.

    Args:
      head_dim: the class's default; None is hidden_size // num_attention_heads.
      kv_heads: the class's default; None is num_attention_heads.
    """
    count, width = keys.integer("num_attention_heads"), keys.integer("hidden_size")
    groups = keys.integer("num_key_value_heads", kv_heads or count, nullable=True)
    size = keys.integer("head_dim", head_dim or width // max(count, 1))
    if size < 1:
        name = "head_dim" if "head_dim" in keys else "num_attention_heads"
        keys.refuse(name, f"is {keys.values[name]}: a head of hidden_size {width} has no dimension")
    return {
        "kind": "attention",
        "heads": count,
        "kv_heads": count if groups is None else groups,
        "head_dim": size,
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
    ours: str = "mixer",
    rows: dict[str, Transform] | None = None,
    sinks: str = "sinks",
) -> list[Rule]:
    """The rules of q, k, v, the output projection, the norms of q and k, and the sinks.

    Args:
      rows: transforms of the rows of "q" and "k", before their weights are transposed.
      sinks: the name of the sinks.
    """
    rows = rows or {}
    qkv, out = mixer.bias in (True, "qkv"), mixer.bias in (True, "out")
    rules = [
        r
        for name in projections(mixer)
        for r in linear(
            f"{theirs}.{name}_proj",
            f"{ours}.{name}",
            bias=qkv,
            transform=rows.get(name, SAME),
        )
    ]
    rules += linear(f"{theirs}.o_proj", f"{ours}.out", bias=out)
    if mixer.qk_norm and mixer.qk_norm != "l2":
        normed = ("q",) if mixer.kv_in else ("q", "k")
        rules += [rule(f"{theirs}.{x}_norm.weight", f"{ours}.{x}_norm.scale") for x in normed]
    if mixer.sinks:
        rules.append(rule(f"{theirs}.{sinks}", f"{ours}.sinks.logits"))
    return rules


def projections(mixer: AttentionConfig) -> tuple[str, ...]:
    """The projections of the input that a layer has."""
    if mixer.kv_in:
        return ("q",)
    return ("q", "k", "v") if mixer.values == "own" else ("q", "k")


def pair_rows(model: ModelConfig, mixer: AttentionConfig) -> dict[str, Transform]:
    """The transforms of rows of q and k of a class that rotates neighbours."""
    if mixer.rope is None:
        return {}
    rotated = mixer.rope.rotated(mixer.head_size(model.width))
    return {
        "q": HalvesFromPairs(mixer.heads, rotated),
        "k": HalvesFromPairs(mixer.kv_heads, rotated),
    }


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


def windowed_types(keys: Keys, default: Sequence[str], window: int | None) -> list:
    """The type of each layer of a class that has a window only where `use_sliding_window` is true.

    Raises:
      ConvertError: for a windowed layer without a window, which the class does not run either.
    """
    types = layer_types(keys, default)
    if window is None and SLIDING in types:
        keys.refuse(
            "layer_types",
            f"has {SLIDING!r}, and no window is on: it needs use_sliding_window and sliding_window",
        )
    return types


def required_window(keys: Keys, default: int) -> int:
    """The window of windowed layers, of classes that transformers runs with one only."""
    window = keys.integer("sliding_window", default, nullable=True)
    if window is None:
        keys.refuse(
            "sliding_window", "is null: the class needs a number, with windowed layers or not"
        )
    return window


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


def full_and_sliding(
    mixer: Mapping[str, Any], ropes: Mapping[str, Any], window: int
) -> dict[str, tuple[str, dict[str, Any]]]:
    """The mixers of both types, for `by_type`, which differ in RoPE and window alone."""
    return {
        FULL: ("full", {**mixer, "rope": ropes[FULL]}),
        SLIDING: ("swa", {**mixer, "rope": ropes[SLIDING], "window": window}),
    }


def by_type(
    types: Sequence[str], mixers: Mapping[str, tuple[str, dict[str, Any]]], feed: dict[str, Any]
) -> list[LayerSettings]:
    """Layers whose mixer (name, settings) follows from their type."""
    return [LayerSettings(*mixers[kind], feed) for kind in types]


def repeated(pattern: int, depth: int) -> list[str]:
    """The types of layers of which every `pattern`-th has full attention."""
    return [FULL if (i + 1) % pattern == 0 else SLIDING for i in range(depth)]


def types_or_pattern(keys: Keys, pattern: int) -> list[str]:
    """The type of each layer; every `sliding_window_pattern`-th is full where types are not listed.

    Args:
      pattern: the class's default.
    """
    keys.harmless("_sliding_window_pattern")
    pattern = keys.integer("sliding_window_pattern", pattern)
    return layer_types(keys, repeated(pattern, keys.integer("num_hidden_layers")))


# --- rope ---------------------------------------------------------------------------------------

_DEFAULT = {"rope_type": "default"}
#: The key of the context length that RoPE was trained on.
LENGTH = "original_max_position_embeddings"


def rope_object(keys: Keys, default: Mapping[str, Any] | None = None) -> Keys:
    """The object with the settings of RoPE: `rope_scaling` before `rope_parameters`, as the classes do.

    Args:
      default: of a config without either; None is an empty object.
    """
    own, old = keys.object("rope_parameters", None), keys.object("rope_scaling", None)
    if old is not None and old.values:
        return old
    if own is not None:
        return own
    return Keys(default or {}, keys.where, "rope_parameters.")


def rope(
    keys: Keys,
    theta: float = 10_000.0,
    *,
    fraction: float = 1.0,
    whole: bool = False,
    default: Mapping[str, Any] | None = None,
    also: Sequence[str] = (),
) -> dict[str, Any]:
    """The settings of RoPE, from `rope_parameters` (transformers 5) or `rope_theta`, `rope_scaling`.

    Args:
      theta, fraction: the class's defaults.
      whole: refuse `partial_rotary_factor`, which the class does not read (without scaling).
      default: the class's object, for a config without one.
      also: keys of the object that the family itself reads.
    """
    theta = keys.number("rope_theta", theta)
    fraction = keys.number("partial_rotary_factor", fraction)
    given = rope_object(keys, default)
    given.harmless(*also)
    length = keys.integer(LENGTH, None)  # beside the object it counts before the one in it
    found = _scaled(keys, given, theta, fraction, length)
    if whole and "fraction" in found:
        keys.refuse(
            "partial_rotary_factor", f"is {found['fraction']}: the class rotates whole heads"
        )
    return found


def rotated_down(rope: Mapping[str, Any], size: int) -> dict[str, Any]:
    """RoPE for classes that round the number of rotated dimensions of a head down, where we round.

    Args:
      rope: what `rope` gives.
      size: of a head.
    """
    if "fraction" not in rope:
        return dict(rope)
    return {**rope, "fraction": rounded_down(rope["fraction"], size)}


def rope_by_type(
    keys: Keys,
    theta: float,
    local_theta: float,
    local: str | None = None,
    *,
    fraction: float | None = None,
) -> dict[str, dict[str, Any]]:
    """The settings of RoPE by type of layer, for classes whose `rope_parameters` has an object for each.

    Older configs have `rope_theta`, and `rope_scaling` for layers with full attention alone.

    Args:
      theta, local_theta: the class's defaults for full and for windowed layers.
      local: the older key of the latter.
      fraction: the class's share of rotated dimensions, without scaling; None refuses the key.
    """
    share = None if fraction is None else keys.number("partial_rotary_factor", None)
    bases = {FULL: keys.number("rope_theta", theta), SLIDING: local_theta}
    if local is not None:
        bases[SLIDING] = keys.number(local, local_theta)
    own, old = keys.object("rope_parameters", None), keys.object("rope_scaling", None)
    found = {}
    for kind, base in bases.items():
        given = own.object(kind, None) if own is not None else None
        if given is None and kind == FULL:
            given = old
        given = given or Keys({}, keys.where)
        default = share
        if share is None:
            scaled = given.text("rope_type", given.text("type", "default")) != "default"
            default = 1.0 if scaled or fraction is None else fraction
        found[kind] = _scaled(keys, given, base, default)
        if found[kind].get("yarn", {}).get("truncate") is False:
            given.refuse("truncate", "is false: the class does not read it in an object of a type")
        if fraction is None and "fraction" in found[kind]:
            given.refuse("partial_rotary_factor", "is below 1: the class rotates whole heads")
    if own is not None:
        own.finish()
    return found


def _scaled(
    keys: Keys, given: Keys, theta: float, fraction: float, length: int | None = None
) -> dict[str, Any]:
    """The settings of RoPE from an object with `rope_type`, and the keys of the config around it.

    Args:
      length: of the context in training; None reads it in the object.
    """
    new = keys.integer("max_position_embeddings", None)
    kind = given.text("rope_type", given.text("type", "default"))
    theta = given.number("rope_theta", theta)
    fraction = given.number("partial_rotary_factor", fraction)
    extra: dict[str, Any] = {}
    if kind in ("llama3", "yarn"):
        inner = given.integer(LENGTH, new)
        length = inner if length is None else length
        if length is None:
            given.refuse(LENGTH, "is missing")
    if kind == "llama3":
        extra["llama3"] = {
            "factor": given.number("factor"),
            "length": length,
            "low": given.number("low_freq_factor"),
            "high": given.number("high_freq_factor"),
        }
    elif kind == "linear":
        extra["linear"] = {"factor": given.number("factor")}
    elif kind == "proportional":
        extra["kept"] = {"fraction": fraction, "factor": given.number("factor", 1.0)}
        fraction = 1.0
    elif kind == "yarn":
        extra["yarn"] = _yarn(given, length, new)
    elif kind in ("longrope", "su", "dynamic"):
        given.refuse(
            "rope_type",
            f"is {kind!r}: its frequencies follow from the length of the whole text, so that a later"
            " token would change earlier outputs",
        )
    elif kind != "default":
        given.refuse(
            "rope_type", f"is {kind!r}: hybridlm has default, linear, llama3, proportional and yarn"
        )
    given.harmless("mrope_section", "mrope_interleaved")
    given.finish()
    return _rope(theta, fraction) | extra


def _rope(theta: float, fraction: float) -> dict[str, Any]:
    return {"theta": theta} | ({} if fraction == 1 else {"fraction": fraction})


def _yarn(given: Keys, length: int, new: int | None) -> dict[str, Any]:
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


def rounded_down(fraction: float, head_dim: int) -> float:
    """A share of a head whose dimensions, rounded to the nearest, are those of `fraction` rounded down."""
    if int(fraction * head_dim) == round(fraction * head_dim):
        return fraction
    return (int(fraction * head_dim) + 0.25) / head_dim


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
            LENGTH: x.length,
            "low_freq_factor": x.low,
            "high_freq_factor": x.high,
        }
    if rope.linear:
        return found | {"rope_type": "linear", "factor": rope.linear.factor}
    if rope.kept:
        found |= {"rope_type": "proportional", "partial_rotary_factor": rope.kept.fraction}
        return found | ({} if rope.kept.factor == 1 else {"factor": rope.kept.factor})
    if rope.yarn:
        x = rope.yarn
        return found | not_none(
            {
                "rope_type": "yarn",
                "factor": x.factor,
                LENGTH: x.length,
                "beta_fast": x.fast,
                "beta_slow": x.slow,
                "attention_factor": x.attention,
                "truncate": None if x.truncate else False,
            }
        )
    return found | _DEFAULT


def type_keys(layers: Sequence[AttentionConfig]) -> dict[str, Any]:
    """The keys of windows, of types of layers and of RoPE, for classes with an object for each type.

    Raises:
      Inexpressible: if two layers of a type differ in what these keys say.
    """
    types = window_types(layers)
    ropes = {}
    for kind in dict.fromkeys(types):
        ropes[kind] = rope_keys(required_rope([x for x, t in zip(layers, types) if t == kind]))
    both = {FULL: ropes.get(FULL, ropes.get(SLIDING)), SLIDING: ropes.get(SLIDING, ropes.get(FULL))}
    return {
        "sliding_window": one_window(layers) or DEFAULT_WINDOW,
        "layer_types": types,
        "rope_parameters": both,
    }


def required_rope(mixers: Sequence[AttentionConfig]) -> RopeConfig:
    """The RoPE of all layers.

    Raises:
      Inexpressible: if a layer has none, or another.
    """
    for i, mixer in enumerate(mixers):
        if mixer.rope is None:
            raise Inexpressible(f"layer {i} has no RoPE")
    return only_value((x.rope for x in mixers), "rope")


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
        if not isinstance(feedforward, Gated):
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


# --- blocks -------------------------------------------------------------------------------------

#: Norms of a layer in transformers and ours, by `block`.
PRENORM = {"input_layernorm": "mixer_norm", "post_attention_layernorm": "mlp_norm"}
POSTNORM = {
    "post_attention_layernorm": "mixer_post_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}
SANDWICH = {
    "input_layernorm": "mixer_norm",
    "post_attention_layernorm": "mixer_post_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}


def block_rules(
    model: ModelConfig,
    mixer: AttentionConfig,
    feedforward: FeedForwardConfig,
    norms: Mapping[str, str] = PRENORM,
    rows: dict[str, Transform] | None = None,
) -> list[Rule]:
    """The rules of a layer with attention and a gated feed-forward; `rows` as in `attention_rules`."""
    return [
        *(r for theirs, ours in norms.items() for r in norm(model, theirs, ours)),
        *attention_rules(model, mixer, rows=rows),
        *gated_rules(feedforward),
    ]
