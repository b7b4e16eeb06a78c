"""Qwen3-Next and Qwen3.5: Gated DeltaNet, gated attention with partial RoPE, experts or dense layers."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import experts, gated_delta, parts
from hybridlm.convert.family import Family, Inexpressible, norm, only_value, require_block
from hybridlm.convert.gated_delta import LINEAR
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule, linear, rule
from hybridlm.convert.transforms import SAME, TRANSPOSED, Split, chain
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.mixers.delta import Sizes
from hybridlm.models.mixers.gdn import GDNConfig
from hybridlm.models.settings import ModelConfig


class Qwen35(Family):
    """Three layers of Gated DeltaNet to one of gated attention; norms have an offset of 1."""

    architecture: ClassVar[str] = "Qwen3_5ForCausalLM"
    model_type: ClassVar[str] = "qwen3_5_text"
    models: ClassVar[str] = "Qwen3.5, text, dense"
    ignored: ClassVar[frozenset[str]] = Family.ignored | experts.TRAINING
    optional: ClassVar[tuple[str, ...]] = (*Family.optional, "mtp.*")
    kv_heads: ClassVar[int] = 4

    def settings(self, keys: Keys) -> dict[str, Any]:
        depth, every = keys.integer("num_hidden_layers"), keys.integer("full_attention_interval", 4)
        default = [LINEAR if (i + 1) % every else parts.FULL for i in range(depth)]
        types = parts.layer_types(keys, default, (LINEAR, parts.FULL))
        keys.only(
            "attention_bias", False, why="hybridlm has no bias in the output gate of attention"
        )
        keys.only("use_sliding_window", False, why="the class has no windows")
        keys.harmless("sliding_window", "max_window_layers")
        mixers = {
            LINEAR: gated_delta.delta_settings(keys, heads=16, value_heads=32, sizes=128),
            parts.FULL: self.attention(keys) if parts.FULL in types else None,
        }
        names = {LINEAR: "gdn", parts.FULL: "full"}
        layers = [
            LayerSettings(names[kind], mixers[kind], feed, name)
            for kind, (name, feed) in zip(types, self.feedforwards(keys, depth))
        ]
        if parts.FULL not in types:
            keys.harmless("num_attention_heads", "num_key_value_heads", "head_dim")
            keys.harmless("rope_parameters", "partial_rotary_factor", "rope_theta", "rope_scaling")
        return parts.sizes(keys, tied=False) | {"norm": "rmsnorm_unit_offset"} | laid_out(layers)

    def attention(self, keys: Keys) -> dict[str, Any]:
        """The settings of gated attention."""
        heads = parts.heads(keys, head_dim=256, kv_heads=self.kv_heads)
        rope = parts.rotated_down(parts.rope(keys, fraction=0.25), heads["head_dim"])
        return heads | {"rope": rope, "qk_norm": "unit_offset", "output_gate": True}

    def feedforwards(self, keys: Keys, depth: int) -> list[tuple[str, dict[str, Any]]]:
        """The name and the settings of each layer's feed-forward."""
        return [("mlp", parts.gated(keys))] * depth

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        types, delta, attention = gated_delta.delta_and_attention(model)
        found = {**parts.size_keys(model), **self.feedforward_keys(model), "layer_types": types}
        if delta:
            found |= gated_delta.delta_keys(model, delta)
        if attention:
            rope = parts.required_rope(attention)
            found |= parts.head_keys(model, attention)
            # Written even where it is 1: the class's default is another.
            found["rope_parameters"] = {
                "partial_rotary_factor": rope.fraction,
                **parts.rope_keys(rope),
            }
        else:
            found |= parts.NO_HEADS
        return found

    def feedforward_keys(self, model: ModelConfig) -> dict[str, Any]:
        """The inverse of `feedforwards`."""
        return parts.gated_keys(model)

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        found = [r for names in parts.PRENORM.items() for r in norm(model, *names)]
        if isinstance(mixer, GDNConfig):
            sizes = mixer.sizes(model.width)
            found += [
                *self.projections(sizes),
                gated_delta.conv_rule("linear_attn", sizes),
                *gated_delta.decay_rules("linear_attn"),
                rule("linear_attn.norm.weight", "mixer.output.norm.norm.scale"),
                *linear("linear_attn.out_proj", "mixer.out"),
            ]
        elif isinstance(mixer, AttentionConfig):
            found += _attention_rules(model, mixer)
        if isinstance(feedforward, MoEConfig):
            return found + experts.expert_rules(feedforward)
        return found + parts.gated_rules(feedforward)

    def projections(self, sizes: Sizes) -> list[Rule]:
        """The rules of what Gated DeltaNet projects its input to."""
        return gated_delta.fused(sizes)


class Qwen35MoE(Qwen35):
    """As Qwen3.5, with a mixture of experts in every layer."""

    architecture: ClassVar[str] = "Qwen3_5MoeForCausalLM"
    model_type: ClassVar[str] = "qwen3_5_moe_text"
    models: ClassVar[str] = "Qwen3.5, text, mixtures of experts"
    kv_heads: ClassVar[int] = 2
    top_k: ClassVar[int] = 8
    experts: ClassVar[int] = 256

    def feedforwards(self, keys: Keys, depth: int) -> list[tuple[str, dict[str, Any]]]:
        keys.harmless("intermediate_size", "norm_topk_prob")  # the class reads neither
        return [("moe", self.mixture(keys, normalize=True))] * depth

    def mixture(self, keys: Keys, *, normalize: bool) -> dict[str, Any]:
        """The settings of a mixture of experts."""
        keys.harmless("router_aux_loss_coef")
        shared = keys.integer("shared_expert_intermediate_size", 512)
        if shared < 1:
            keys.refuse(
                "shared_expert_intermediate_size",
                f"is {shared}: hybridlm has this family with a shared expert",
            )
        return {
            "kind": "moe",
            "experts": keys.integer("num_experts", self.experts),
            "top_k": keys.integer("num_experts_per_tok", self.top_k),
            "hidden": keys.integer("moe_intermediate_size", 512),
            "activation": keys.choice("hidden_act", parts.ACTIVATIONS, "silu"),
            "router": {"scores": "softmax", "normalize": normalize},
            "shared_hidden": shared,
            "shared_gate": True,
        }

    def feedforward_keys(self, model: ModelConfig) -> dict[str, Any]:
        mixtures, _ = experts.mixtures_and_dense(model)
        for i, mixture in enumerate(mixtures):
            if mixture is None:
                raise Inexpressible(f"layer {i} has no mixture of experts")
        return _mixture_keys([x for x in mixtures if x is not None])


class Qwen3Next(Qwen35MoE):
    """As Qwen3.5, with fused projections by key head; layers may be dense."""

    architecture: ClassVar[str] = "Qwen3NextForCausalLM"
    model_type: ClassVar[str] = "qwen3_next"
    models: ClassVar[str] = "Qwen3-Next"
    top_k: ClassVar[int] = 10
    experts: ClassVar[int] = 512

    def feedforwards(self, keys: Keys, depth: int) -> list[tuple[str, dict[str, Any]]]:
        sparse = experts.alternating(keys, keys.integer("num_experts", self.experts))
        normalize = keys.flag("norm_topk_prob", True)
        if any(sparse):
            mixture = self.mixture(keys, normalize=normalize)
        else:
            keys.harmless("num_experts_per_tok", "moe_intermediate_size", "router_aux_loss_coef")
            keys.harmless("shared_expert_intermediate_size")
        if all(sparse):
            keys.harmless("intermediate_size")
        else:
            gated = parts.gated(keys)
        return [("moe", mixture) if x else ("mlp", gated) for x in sparse]

    def feedforward_keys(self, model: ModelConfig) -> dict[str, Any]:
        mixtures, dense = experts.mixtures_and_dense(model)
        found: dict[str, Any] = {"num_experts": 0, "decoder_sparse_step": 1}
        found["mlp_only_layers"] = [i for i, x in enumerate(mixtures) if x is None]
        if gated := experts.first_of(dense):
            found["intermediate_size"] = gated.hidden
            found["hidden_act"] = parts.THEIR_ACTIVATIONS[gated.activation]
        return found | _mixture_keys([x for x in mixtures if x is not None])

    def projections(self, sizes: Sizes) -> list[Rule]:
        return gated_delta.fused_by_head(sizes)


def _mixture_keys(mixtures: list[MoEConfig]) -> dict[str, Any]:
    if not mixtures:
        return {}
    found = only_value(mixtures, "the mixture of experts")
    if found.shared_hidden is None:
        raise Inexpressible("its experts have no shared expert")
    return {
        "num_experts": found.experts,
        "num_experts_per_tok": found.top_k,
        "moe_intermediate_size": found.hidden,
        "shared_expert_intermediate_size": found.shared_hidden,
        "hidden_act": parts.THEIR_ACTIVATIONS[found.activation],
        "norm_topk_prob": found.router.normalize,
    }


def _attention_rules(model: ModelConfig, mixer: AttentionConfig) -> list[Rule]:
    """q_proj holds the queries and the gates of a head, then the next head's."""
    size = mixer.head_size(model.width)
    both = chain(Split((size, size), mixer.heads), TRANSPOSED)
    names = ("mixer.q.kernel", "mixer.gate.proj.kernel")
    return [rule("self_attn.q_proj.weight", names, both)] + [
        r
        for r in parts.attention_rules(model, mixer, rows={"q": SAME})
        if r.ours != ("mixer.q.kernel",)
    ]
