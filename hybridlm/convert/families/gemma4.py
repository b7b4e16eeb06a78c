"""Gemma 4's text models: larger heads in full layers, keys that layers share, a vector for each layer."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from hybridlm.convert import parts
from hybridlm.convert.family import Family, Inexpressible, mixers_of, only_value, require_block
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule, linear, rule, under
from hybridlm.convert.transforms import TRANSPOSED, Columns, chain
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.beside import BesideConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.settings import ModelConfig

#: Of the class: what `rope_parameters` are where the key is absent.
ROPES = {
    parts.FULL: {"theta": 1_000_000.0, "kept": {"fraction": 0.25}},
    parts.SLIDING: {"theta": 10_000.0},
}
NAMES = {parts.FULL: "full", parts.SLIDING: "swa"}
#: The norms around the dense feed-forward and the experts, where a layer has both.
BESIDE = {
    "pre_feedforward_layernorm": "dense_norm",
    "post_feedforward_layernorm_1": "dense_post_norm",
    "pre_feedforward_layernorm_2": "moe_norm",
    "post_feedforward_layernorm_2": "moe_post_norm",
}


class Gemma4(Family):
    """Sandwich norms and a scalar a layer; norms of q, k and v; windows in most layers.

    The last `num_kv_shared_layers` layers attend to the keys and values of the last layer of their
    type below; their feed-forwards may be twice as wide.
    """

    architecture: ClassVar[str] = "Gemma4ForCausalLM"
    model_type: ClassVar[str] = "gemma4_text"
    models: ClassVar[str] = "Gemma 4, text: E2B, E4B, 31B and 26B-A4B (mixture of experts)"
    ignored: ClassVar[frozenset[str]] = Family.ignored | {"balance_weight", "z_weight"}

    def settings(self, keys: Keys) -> dict[str, Any]:
        depth = keys.integer("num_hidden_layers")
        keys.only("use_bidirectional_attention", None)
        types = parts.layer_types(keys, parts.repeated(6, depth))
        types[-1] = parts.FULL  # as the class does
        ropes = ROPES
        if "rope_parameters" in keys:
            ropes = parts.rope_by_type(keys, 1_000_000.0, 10_000.0)
        keys.harmless("rope_parameters")
        mixer = parts.heads(keys, head_dim=256, kv_heads=4) | {
            "bias": keys.flag("attention_bias", False),
            "qk_norm": True,
            "scale": 1.0,
        }
        one = keys.flag("attention_k_eq_v", False)
        window = keys.integer("sliding_window", 512)
        feeds = _feedforwards(keys, depth)
        layers = []
        for kind, own, shared, feed in zip(
            types, _own_sizes(keys, types, one), _shared(keys, types), feeds
        ):
            more = {"window": window} if kind == parts.SLIDING else {}
            if "kv_in" not in shared:
                more["v_norm"] = True
                more["values"] = "keys" if one and kind == parts.FULL else "own"
            more |= own | shared | {"rope": ropes[kind]}
            name = "_".join((NAMES[kind], *("shared" for x in shared if x == "kv_in")))
            layers.append(LayerSettings(name, mixer | more, feed))
        return {
            **parts.sizes(keys, tied=True),
            **laid_out(layers),
            "block": "scaled_sandwich",
            "embedding_scale": keys.integer("hidden_size") ** 0.5,
            "logit_soft_cap": keys.number("final_logit_softcapping", None),
            "per_layer": _per_layer(keys),
        }

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "scaled_sandwich")
        mixers = mixers_of(model, AttentionConfig)
        types = parts.window_types(mixers)
        first = next((x for x in mixers if x.window is not None), mixers[0])
        own = {
            str(i): {"head_dim": x.head_size(model.width), "num_key_value_heads": x.kv_heads}
            for i, (x, kind) in enumerate(zip(mixers, types))
            if kind == parts.FULL
        }
        return {
            **parts.size_keys(model),
            **_feedforward_keys(model),
            **parts.type_keys(mixers),
            **_per_layer_keys(model),
            "num_attention_heads": only_value((x.heads for x in mixers), "heads"),
            "num_key_value_heads": first.kv_heads,
            "head_dim": first.head_size(model.width),
            "per_layer_config": own,
            "attention_k_eq_v": any(x.values == "keys" for x in mixers),
            "attention_bias": only_value((x.bias for x in mixers), "bias") is True,
            "final_logit_softcapping": model.logit_soft_cap,
            "num_kv_shared_layers": sum(x.kv_in is not None for x in mixers),
        }

    def unused(self, model: ModelConfig) -> tuple[str, ...]:
        """Published checkpoints have keys of layers that read another's; the class leaves them out."""
        names = ("k_proj", "v_proj", "k_norm", "v_norm")
        return self.optional + tuple(
            f"model.layers.{i}.self_attn.{name}.*"
            for i, (_, mixer) in enumerate(model.layer_mixers())
            if mixer.reads_cache is not None
            for name in names
        )

    def outer(self, model: ModelConfig) -> list[Rule]:
        found = super().outer(model)
        if model.per_layer is not None:
            found += under(
                [
                    rule("embed_tokens_per_layer.weight", "embedding"),
                    *linear("per_layer_model_projection", "projection"),
                    rule("per_layer_projection_norm.weight", "norm.scale"),
                ],
                self.stem,
                "per_layer.",
            )
        return found

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        norms = dict(parts.SANDWICH)
        if isinstance(feedforward, BesideConfig):
            del norms["pre_feedforward_layernorm"]
        found = [rule("layer_scalar", "output_scale")]
        found += [rule(f"{theirs}.weight", f"{ours}.scale") for theirs, ours in norms.items()]
        if isinstance(mixer, AttentionConfig):
            found += parts.attention_rules(model, mixer)
        if isinstance(feedforward, BesideConfig):
            found += _beside_rules()
        else:
            found += parts.gated_rules(feedforward)
        if model.per_layer is not None:
            found += [
                *linear("per_layer_input_gate", "per_layer.gate"),
                *linear("per_layer_projection", "per_layer.out"),
                rule("post_per_layer_input_norm.weight", "per_layer.norm.scale"),
            ]
        return found


def _beside_rules() -> list[Rule]:
    """The rules of a dense feed-forward and of experts, with their norms."""
    found = [rule(f"{theirs}.weight", f"mlp.{ours}.scale") for theirs, ours in BESIDE.items()]
    for name in ("gate", "up", "down"):
        found += linear(f"mlp.{name}_proj", f"mlp.dense.{name}")
    into = ("mlp.moe.experts.gate", "mlp.moe.experts.up")
    return [
        *found,
        *linear("router.proj", "mlp.moe.router"),
        rule("router.scale", "mlp.moe.router.norm.scale"),
        rule("router.per_expert_scale", "mlp.moe.router.expert_scale"),
        rule("experts.gate_up_proj", into, chain(TRANSPOSED, Columns(2))),
        rule("experts.down_proj", "mlp.moe.experts.down", TRANSPOSED),
    ]


def _shared(keys: Keys, types: Sequence[str]) -> list[dict[str, str]]:
    """Of each layer, whether its keys are read by others (`kv_out`) or are another's (`kv_in`)."""
    count = keys.integer("num_kv_shared_layers", 0)
    first = len(types) - count
    own = list(types[: max(first, 0)])
    if count and {*own} != {*types}:
        keys.refuse(
            "num_kv_shared_layers",
            f"is {count}, and a type of layer that shares keys has no layer below with its own",
        )
    given = {len(own) - 1 - own[::-1].index(kind) for kind in {*own}} if count else set()
    return [
        {"kv_in": NAMES[kind]} if i >= first else {"kv_out": NAMES[kind]} if i in given else {}
        for i, kind in enumerate(types)
    ]


def _feedforwards(keys: Keys, depth: int) -> list[dict[str, Any]]:
    """The settings of each layer's feed-forward."""
    dense = parts.gated(keys, activation="hidden_activation", default="gelu_pytorch_tanh")
    wide, shared = keys.flag("use_double_wide_mlp", False), keys.integer("num_kv_shared_layers", 0)
    sizes = [dense["hidden"] * (1 + (wide and i >= depth - shared)) for i in range(depth)]
    found = [dense | {"hidden": size} for size in sizes]
    if not keys.flag("enable_moe_block", False):
        keys.harmless("num_experts", "top_k_experts", "moe_intermediate_size")
        return found
    mixture = {
        "experts": keys.integer("num_experts"),
        "top_k": keys.integer("top_k_experts"),
        "hidden": keys.integer("moe_intermediate_size"),
        "activation": keys.choice("hidden_activation", parts.ACTIVATIONS, "gelu_pytorch_tanh"),
        "router": {"normalize": True, "input_norm": True, "expert_scale": True},
    }
    return [{"kind": BesideConfig.kind_name, "dense": x, "moe": mixture} for x in found]


def _feedforward_keys(model: ModelConfig) -> dict[str, Any]:
    """The inverse of `_feedforwards`."""
    layers = model.layer_feedforwards()
    mixtures = [x.moe if isinstance(x, BesideConfig) else None for x in layers]
    dense = [x.dense if isinstance(x, BesideConfig) else x for x in layers]
    for i, feed in enumerate(dense):
        if not isinstance(feed, parts.Gated):
            raise Inexpressible(f"layer {i} has the feed-forward {feed.kind_name}, not gated")
    found = {
        "intermediate_size": dense[0].hidden,
        "hidden_activation": parts.THEIR_ACTIVATIONS[dense[0].activation],
        "enable_moe_block": mixtures[0] is not None,
    }
    if dense[-1].hidden != dense[0].hidden:  # the class's own is false
        found["use_double_wide_mlp"] = True
    if mixtures[0] is None:
        return found
    return found | {
        "num_experts": mixtures[0].experts,
        "top_k_experts": mixtures[0].top_k,
        "moe_intermediate_size": mixtures[0].hidden,
    }


def _per_layer(keys: Keys) -> dict[str, Any] | None:
    """The settings of the vectors for each layer."""
    rows = keys.integer("vocab_size_per_layer_input", 262_144)
    size = keys.integer("hidden_size_per_layer_input", 256)
    if not size:
        return None
    if rows < keys.integer("vocab_size"):
        keys.refuse("vocab_size_per_layer_input", f"is {rows}, less than vocab_size")
    act = keys.choice("hidden_activation", parts.ACTIVATIONS, "gelu_pytorch_tanh")
    return {"size": size, "rows": rows, "activation": act}


def _per_layer_keys(model: ModelConfig) -> dict[str, Any]:
    """The inverse of `_per_layer`."""
    if model.per_layer is None:
        return {"hidden_size_per_layer_input": 0}
    return {
        "hidden_size_per_layer_input": model.per_layer.size,
        "vocab_size_per_layer_input": model.per_layer.rows or model.vocab_size,
    }


def _own_sizes(keys: Keys, types: list[str], shared: bool) -> list[dict[str, int]]:
    """The head_dim and kv_heads of each layer, where they are not those of the config."""
    size = keys.integer("global_head_dim", 512)
    groups = keys.integer("num_global_key_value_heads", None)
    of_full = {"head_dim": size} | ({"kv_heads": groups} if shared and groups else {})
    given = keys.object("per_layer_config", None)
    if given is None:
        return [of_full if kind == parts.FULL else {} for kind in types]
    found = []
    for i in range(len(types)):
        layer = given.object(str(i), None)
        own = {}
        if layer is not None:
            sizes = {
                "head_dim": layer.integer("head_dim", None),
                "kv_heads": layer.integer("num_key_value_heads", None),
            }
            own = {name: value for name, value in sizes.items() if value is not None}
            layer.finish()
        found.append(own)
    given.finish()
    return found
