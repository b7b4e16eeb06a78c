"""MiMo-V2-Flash (arXiv 2601.02780): windows with sinks and full attention, values smaller than keys."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import experts, parts
from hybridlm.convert.family import Family, mixers_of, norm, only_value, require_block
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.settings import ModelConfig

DENSE, SPARSE = "dense", "sparse"


class MiMoV2Flash(Family):
    """Pre-norm blocks; windowed layers have twice the key/value heads, and a sink for each head."""

    architecture: ClassVar[str] = "MiMoV2FlashForCausalLM"
    model_type: ClassVar[str] = "mimo_v2_flash"
    models: ClassVar[str] = "MiMo-V2-Flash (without quantisation)"
    ignored: ClassVar[frozenset[str]] = Family.ignored | experts.TRAINING
    #: The layers that predict further tokens.
    optional: ClassVar[tuple[str, ...]] = (*Family.optional, "model.mtp.*")

    def settings(self, keys: Keys) -> dict[str, Any]:
        depth = keys.integer("num_hidden_layers")
        types = parts.layer_types(keys, _default_types(keys, depth))
        mixers = self._mixers(keys)
        feeds = experts.by_layer(keys, _sparse(keys, depth), _mixture(keys))
        layers = [
            LayerSettings(*mixers[kind], feed, label) for kind, (label, feed) in zip(types, feeds)
        ]
        eps = keys.number("rms_norm_eps", keys.number("layernorm_epsilon", 1e-5))
        return parts.sizes(keys, tied=False) | {"norm_eps": eps} | laid_out(layers)

    def _mixers(self, keys: Keys) -> dict[str, tuple[str, dict[str, Any]]]:
        """The name and the settings of attention, by type of layer."""
        mixer = parts.heads(keys, head_dim=192, kv_heads=4)
        scale = keys.number("attention_value_scale", 0.707, nullable=True)
        mixer |= {
            "value_dim": keys.integer("v_head_dim", 128),
            "value_scale": 1.0 if scale is None else scale,
            "bias": "qkv" if keys.flag("attention_bias", False) else False,
        }
        # The published config.json describes windowed layers with keys of their own.
        for name, value in (
            ("swa_num_attention_heads", mixer["heads"]),
            ("swa_num_key_value_heads", 2 * mixer["kv_heads"]),
            ("swa_head_dim", mixer["head_dim"]),
            ("swa_v_head_dim", mixer["value_dim"]),
            ("add_swa_attention_sink_bias", True),
            ("add_full_attention_sink_bias", False),
        ):
            keys.only(name, value, None)
        keys.only("hybrid_block_size", None)
        keys.harmless("attention_chunk_size")  # neither the class nor the original code reads it
        ropes = {
            kind: parts.rotated_down(rope, mixer["head_dim"])
            for kind, rope in parts.rope_by_type(
                keys, 5_000_000.0, 10_000.0, "swa_rope_theta", fraction=0.334
            ).items()
        }
        window = parts.required_window(keys, 129)
        before = keys.integer("sliding_window_size", None)  # tokens before a query
        found = parts.full_and_sliding(mixer, ropes, window if before is None else before + 1)
        found[parts.SLIDING][1].update(kv_heads=2 * mixer["kv_heads"], sinks=True)
        return found

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        mixers, feeds = mixers_of(model, AttentionConfig), experts.Feedforwards.of(model)
        kv_heads = [x.kv_heads // (1 if x.window is None else 2) for x in mixers]
        found = {
            **parts.size_keys(model),
            **feeds.dense_keys(),
            **parts.type_keys(mixers),
            "num_attention_heads": only_value((x.heads for x in mixers), "heads"),
            "num_key_value_heads": only_value(kv_heads, "kv_heads"),
            "head_dim": only_value((x.head_size(model.width) for x in mixers), "head_dim"),
            "v_head_dim": only_value((x.value_size(model.width) for x in mixers), "value_dim"),
            "attention_value_scale": only_value((x.value_scale for x in mixers), "value_scale"),
            "attention_bias": only_value((x.bias for x in mixers), "bias") == "qkv",
            "mlp_layer_types": [SPARSE if x else DENSE for x in feeds.sparse],
        }
        for rope in found["rope_parameters"].values():
            # Written even where it is 1: the class's default is another.
            rope.setdefault("partial_rotary_factor", 1.0)
        if feeds.mixture is None:
            return found
        router = feeds.mixture.router
        return {
            **found,
            **experts.mixture_keys(feeds.mixture, "moe_intermediate_size", "n_routed_experts"),
            "norm_topk_prob": router.normalize,
            "routed_scaling_factor": router.scale,
            "n_group": router.groups,
            "topk_group": router.top_groups,
        }

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        found = [r for names in parts.PRENORM.items() for r in norm(model, *names)]
        if isinstance(mixer, AttentionConfig):
            found += parts.attention_rules(model, mixer, sinks="attention_sink_bias")
        if isinstance(feedforward, MoEConfig):
            return found + experts.expert_rules(feedforward)
        return found + parts.gated_rules(feedforward)


def _default_types(keys: Keys, depth: int) -> list[str]:
    """The types of layers of a config.json without `layer_types`."""
    default = [int(i > 0 and (i + 1) % 6 > 0) for i in range(depth)]
    windowed = keys.list("hybrid_layer_pattern", depth, default)
    return [parts.SLIDING if x else parts.FULL for x in windowed]


def _sparse(keys: Keys, depth: int) -> list[bool]:
    """Of each layer, whether it has experts."""
    default = keys.list("moe_layer_freq", depth, [int(i > 0) for i in range(depth)])
    types = [SPARSE if x else DENSE for x in default]
    types = keys.list("mlp_layer_types", depth, types)
    for name in types:
        if name not in (DENSE, SPARSE):
            keys.refuse("mlp_layer_types", f"has {name!r}: this family has {DENSE}, {SPARSE}")
    return [name == SPARSE for name in types]


def _mixture(keys: Keys) -> dict[str, Any]:
    """The settings of a mixture of experts."""
    keys.only("scoring_func", "sigmoid")
    keys.only("topk_method", "noaux_tc")
    keys.only("n_shared_experts", 0, why="the class has no shared expert")
    normalize = keys.flag("norm_topk_prob", True)
    router = {
        "scores": "sigmoid",
        "choice_bias": True,
        "normalize": normalize,
        "normalize_eps": 1e-20 if normalize else 0.0,
        "scale": keys.number("routed_scaling_factor", 1.0),
        "groups": keys.integer("n_group", 1),
        "top_groups": keys.integer("topk_group", 1),
    }
    return experts.mixture_settings(
        keys,
        router,
        experts=256,
        top_k=8,
        hidden="moe_intermediate_size",
        size=2048,
        counts=("n_routed_experts", "num_local_experts"),
    )
