"""Granite 4 hybrid: Mamba-2 and attention under constant multipliers, mixtures of experts or dense."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import parts, state_space
from hybridlm.convert.family import Family, Inexpressible, norm, only_value, require_block
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule, rule
from hybridlm.convert.transforms import TRANSPOSED, Reshaped, Split, chain
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.settings import ModelConfig

OLD_NAMES = {"mamba": "linear_attention", "attention": "full_attention"}


class GraniteHybrid(Family):
    """Pre-norm blocks of Mamba-2 or attention, with or without RoPE, and a shared expert."""

    architecture: ClassVar[str] = "GraniteMoeHybridForCausalLM"
    model_type: ClassVar[str] = "granitemoehybrid"
    models: ClassVar[str] = "Granite 4.0, hybrid and dense"

    def settings(self, keys: Keys) -> dict[str, Any]:
        sizes = parts.sizes(keys, tied=False) | {
            "embedding_scale": keys.number("embedding_multiplier", 1.0),
            "residual_scale": keys.number("residual_multiplier", 1.0),
            "logit_scale": 1 / _divisor(keys),
        }
        depth = keys.integer("num_hidden_layers")
        keys.harmless("router_aux_loss_coef", "layers_block_type", "init_method")
        keys.only("normalization_function", "rmsnorm")
        listed = keys.list("layer_types", depth, default=["linear_attention"] * depth)
        types = [OLD_NAMES.get(name, name) for name in listed]
        for name in types:
            if name not in OLD_NAMES.values():
                keys.refuse("layer_types", f"has {name!r}: this family has {', '.join(OLD_NAMES)}")
        rope = parts.rope(keys, whole=True)
        turned = keys.text("position_embedding_type", "nope") == "rope"
        attention = parts.heads(keys) | {
            "rope": rope if turned else None,
            "bias": keys.flag("attention_bias", False),
            "scale": keys.number("attention_multiplier", 1.0),
        }
        feed = _feedforward(keys)
        made = {"full_attention": LayerSettings("full", attention, feed)}
        if "linear_attention" in types:
            mamba = state_space.prefixed(keys, sizes["width"])
            made["linear_attention"] = LayerSettings("mamba", mamba, feed)
        else:
            state_space.without(keys)
        return sizes | laid_out([made[name] for name in types])

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        mamba, attention = state_space.split_kinds(model)
        kinds = {True: "full_attention", False: "linear_attention"}
        found = {
            **parts.size_keys(model),
            "embedding_multiplier": model.embedding_scale,
            "residual_multiplier": model.residual_scale,
            "logits_scaling": parts.rounded(1 / model.logit_scale),
            "layer_types": [kinds[i in attention] for i in range(model.depth)],
            **_feedforward_keys(model),
            **state_space.prefixed_keys(model, list(mamba.values())),
            **parts.NO_HEADS,
        }
        if attention:
            layers = list(attention.values())
            rope = only_value((x.rope for x in layers), "rope")
            found |= parts.head_keys(model, layers)
            found["attention_multiplier"] = layers[0].scale or found["head_dim"] ** -0.5
            found["attention_bias"] = layers[0].bias is True
            found["position_embedding_type"] = "nope" if rope is None else "rope"
            if rope is not None:
                found["rope_parameters"] = parts.rope_keys(rope)
        return found

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        return [
            *norm(model, "input_layernorm", "mixer_norm"),
            *state_space.mixer_rules(model, mixer),
            *norm(model, "post_attention_layernorm", "mlp_norm"),
            *_feedforward_rules(model, feedforward),
        ]


def _divisor(keys: Keys) -> float:
    """What the logits are divided by."""
    found = keys.number("logits_scaling", 1.0)
    if found == 0:
        keys.refuse("logits_scaling", "is 0: the logits are divided by it")
    return found


def _feedforward(keys: Keys) -> dict[str, Any]:
    experts = keys.integer("num_local_experts", 8)
    shared = parts.gated(keys, "shared_intermediate_size")
    hidden, top_k = keys.integer("intermediate_size", 11008), keys.integer("num_experts_per_tok", 2)
    if experts == 0:
        return shared
    return {
        "kind": "moe",
        "experts": experts,
        "top_k": top_k,
        "hidden": hidden,
        "activation": keys.choice("hidden_act", parts.ACTIVATIONS, "silu"),
        "shared_hidden": shared["hidden"],
        "router": {"scores": "softmax_chosen"},
    }


def _feedforward_keys(model: ModelConfig) -> dict[str, Any]:
    moe = only_value(model.layer_feedforwards(), "the feed-forward")
    if not isinstance(moe, MoEConfig):
        return {
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            **parts.gated_keys(model, "shared_intermediate_size"),
        }
    if moe.shared_hidden is None:
        raise Inexpressible("layer 0 has no shared expert")
    return {
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.top_k,
        "intermediate_size": moe.hidden,
        "shared_intermediate_size": moe.shared_hidden,
        "hidden_act": parts.THEIR_ACTIVATIONS[moe.activation],
    }


def _feedforward_rules(model: ModelConfig, feedforward: FeedForwardConfig) -> list[Rule]:
    mixture = isinstance(feedforward, MoEConfig)
    ours = "mlp.shared" if mixture else "mlp"
    hidden = feedforward.shared_hidden if mixture else feedforward.hidden
    both = [f"{ours}.{name}.kernel" for name in ("gate", "up")]
    rules = [
        rule("shared_mlp.input_linear.weight", both, chain(Split((hidden, hidden)), TRANSPOSED)),
        rule("shared_mlp.output_linear.weight", f"{ours}.down.kernel", TRANSPOSED),
    ]
    if mixture:
        experts, size, width = feedforward.experts, feedforward.hidden, model.width
        into = chain(  # (experts, 2 * size, width): gate and up of each expert
            Reshaped((experts * 2 * size, width), (experts, 2 * size, width)),
            Split((size, size), experts),
            Reshaped((experts, size, width), (experts * size, width)),
            TRANSPOSED,
        )
        names = [f"mlp.experts.{name}" for name in ("gate", "up")]
        rules += [
            rule("block_sparse_moe.router.layer.weight", "mlp.router.kernel", TRANSPOSED),
            rule("block_sparse_moe.input_linear.weight", names, into),
            rule("block_sparse_moe.output_linear.weight", "mlp.experts.down", TRANSPOSED),
        ]
    return rules
