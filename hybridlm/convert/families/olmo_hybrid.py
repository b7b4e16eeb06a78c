"""OLMo Hybrid: Gated DeltaNet with norms before each half, attention as in OLMo 3 with norms after."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import gated_delta, parts
from hybridlm.convert.family import Family, Inexpressible, norm, only_value
from hybridlm.convert.gated_delta import LINEAR
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule, linear, rule
from hybridlm.convert.transforms import ConvKernel, Recut, chain
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.mixers.delta import Sizes
from hybridlm.models.mixers.gdn import GDNConfig
from hybridlm.models.settings import ModelConfig

#: Of the norm of Gated DeltaNet's output: the class has no key for it.
NORM_EPS = 1e-5
#: Norms before Gated DeltaNet and the feed-forward after it.
LINEAR_NORMS = {"attention_layer_norm": "mixer_norm", "feedforward_layer_norm": "mlp_norm"}
#: Norms after attention and the feed-forward after it; transformers saves the first by this name.
FULL_NORMS = {
    "feedforward_layer_norm": "mixer_post_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}

#: The base of RoPE where a config.json says nothing of it, and what says that there is no RoPE.
THETA = 10_000.0
NO_ROPE = {"rope_theta": None, "rope_type": "default"}


class OlmoHybrid(Family):
    """Three layers of Gated DeltaNet with negative eigenvalues to one of attention, mostly NoPE."""

    architecture: ClassVar[str] = "OlmoHybridForCausalLM"
    model_type: ClassVar[str] = "olmo_hybrid"
    models: ClassVar[str] = "OLMo Hybrid"
    aliases: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"\.post_attention_layernorm\.", ".feedforward_layer_norm."),
        (r"\.input_layernorm\.", ".attention_layer_norm."),
    )

    def settings(self, keys: Keys) -> dict[str, Any]:
        depth, width = keys.integer("num_hidden_layers"), keys.integer("hidden_size")
        default = [parts.FULL if i % 4 == 3 else LINEAR for i in range(depth)]
        if parts.FULL not in default:
            default[-1] = parts.FULL
        types = parts.layer_types(keys, default, (LINEAR, parts.FULL))
        heads = parts.heads(keys)
        keys.harmless("linear_a_log_min", "linear_a_log_max", "linear_dt_min", "linear_dt_max")
        keys.harmless("linear_dt_init_floor")
        key_heads = keys.integer("linear_num_key_heads", heads["heads"])
        size = keys.integer("linear_key_head_dim", int(0.75 * width / max(key_heads, 1)))
        mixers = {
            LINEAR: gated_delta.delta_settings(
                keys, heads=key_heads, value_heads=heads["heads"], sizes=size
            )
            | {
                "value_dim": keys.integer("linear_value_head_dim", 2 * size),
                "negative_eigenvalues": keys.flag("linear_allow_neg_eigval", True),
                "norm_eps": NORM_EPS,
            },
            parts.FULL: heads
            | {
                "rope": _rope(keys),
                "bias": keys.flag("attention_bias", False),
                "qk_norm": "whole",
            },
        }
        names, feed = {LINEAR: "gdn", parts.FULL: "full"}, parts.gated(keys)
        layers = [LayerSettings(names[kind], mixers[kind], feed) for kind in types]
        after = {"full": {"norms": "postnorm"}} if parts.FULL in types else {}
        return parts.sizes(keys, tied=False) | laid_out(layers) | {"blocks": after}

    def config(self, model: ModelConfig) -> dict[str, Any]:
        types, delta, attention = gated_delta.delta_and_attention(model)
        for kind, name in ((LINEAR, "linear"), (parts.FULL, "full")):
            if kind not in types:  # the class refuses such a config
                raise Inexpressible(f"it has no layer with {name} attention")
        rope = only_value((x.rope for x in attention), "rope")
        negative = only_value((x.negative_eigenvalues for x in delta), "negative_eigenvalues")
        return {
            **parts.size_keys(model),
            **parts.gated_keys(model),
            **gated_delta.delta_keys(model, delta),
            "num_attention_heads": only_value((x.heads for x in attention), "heads"),
            "num_key_value_heads": only_value((x.kv_heads for x in attention), "kv_heads"),
            "attention_bias": only_value((x.bias for x in attention), "bias") is True,
            "linear_allow_neg_eigval": negative,
            "layer_types": types,
            "rope_parameters": NO_ROPE if rope is None else parts.rope_keys(rope),
        }

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        if isinstance(mixer, AttentionConfig):
            return parts.block_rules(model, mixer, feedforward, FULL_NORMS)
        found = [r for names in LINEAR_NORMS.items() for r in norm(model, *names)]
        if isinstance(mixer, GDNConfig):
            found += _delta_rules(mixer.sizes(model.width))
        return found + parts.gated_rules(feedforward)


def _rope(keys: Keys) -> dict[str, Any] | None:
    """The settings of RoPE; with a base that is null the class has none."""
    given = keys.values.get("rope_scaling") or keys.values.get("rope_parameters") or {}
    outer = keys.values.get("rope_theta", THETA)
    if isinstance(given, dict) and given.get("rope_theta", outer) is None:
        keys.harmless("rope_parameters", "rope_scaling", "rope_theta")
        return None
    return parts.rope(keys, whole=True)


def _delta_rules(sizes: Sizes, theirs: str = "linear_attn") -> list[Rule]:
    projections = {"q": "q", "k": "k", "v": "v", "b": "beta", "a": "decay.proj", "g": "output.gate"}
    return [
        *(
            r
            for name, ours in projections.items()
            for r in linear(f"{theirs}.{name}_proj", f"mixer.{ours}")
        ),
        # Published checkpoints cut the convolution by q, k and v, transformers into three equal parts.
        rule(
            [f"{theirs}.{x}_conv1d.weight" for x in ("q", "k", "v")],
            [f"mixer.{x}_conv.kernel" for x in ("q", "k", "v")],
            chain(Recut((sizes.keys, sizes.keys, sizes.values)), ConvKernel()),
        ),
        *gated_delta.decay_rules(theirs),
        rule(f"{theirs}.o_norm.weight", "mixer.output.norm.norm.scale"),
        *linear(f"{theirs}.o_proj", "mixer.out"),
    ]
