"""Jamba (arXiv 2403.19887): Mamba layers, attention without positions, and mixtures of experts."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from hybridlm.convert import experts, parts, selective
from hybridlm.convert.family import Family, Inexpressible, norm, only_value, require_block
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.mixers.mamba1 import Mamba1Config
from hybridlm.models.settings import ModelConfig


class Jamba(Family):
    """Pre-norm blocks of Mamba or attention; every so many layers one has attention, one experts."""

    architecture: ClassVar[str] = "JambaForCausalLM"
    model_type: ClassVar[str] = "jamba"
    models: ClassVar[str] = "Jamba 1.0 to 1.7, Jamba Reasoning 3B"
    ignored: ClassVar[frozenset[str]] = Family.ignored | experts.TRAINING
    final_norm: ClassVar[str] = "final_layernorm"

    def settings(self, keys: Keys) -> dict[str, Any]:
        sizes = parts.sizes(keys, tied=False)
        depth, width = keys.integer("num_hidden_layers"), sizes["width"]
        keys.harmless("router_aux_loss_coef", "num_logits_to_keep", "n_ctx")
        keys.harmless("calc_logits_for_entire_prompt")
        keys.only("mamba_inner_layernorms", True)
        keys.only("sliding_window", None)
        inner = keys.integer("mamba_expand", 2) * width
        mixers = {
            True: ("full", parts.heads(keys, kv_heads=8) | {"rope": None}),
            False: ("mamba", selective.mamba1(keys, selective.PREFIXED, inner, "rmsnorm")),
        }
        hidden = keys.integer("intermediate_size", 14336)
        count, top_k = (
            keys.integer("num_experts", keys.integer("num_local_experts", 16)),
            keys.integer("num_experts_per_tok", 2),
        )
        dense = {"kind": "swiglu", "hidden": hidden}
        mixture = {"kind": "moe", "experts": count, "top_k": top_k, "hidden": hidden}
        mixture["router"] = {"scores": "softmax", "normalize": False}
        feeds = {True: (mixture, "moe"), False: (dense, "mlp")}
        attending = _every(keys, "attn_layer", 8, 4, depth)
        chosen = _every(keys, "expert_layer", 2, 1, depth)
        layers = [
            LayerSettings(*mixers[attends], *feeds[chooses and count > 1])
            for attends, chooses in zip(attending, chosen)
        ]
        return sizes | laid_out(layers)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        mixers = [mixer for _, mixer in model.layer_mixers()]
        mamba = [x for x in mixers if isinstance(x, Mamba1Config)]
        attention = [x for x in mixers if isinstance(x, AttentionConfig)]
        for i, mixer in enumerate(mixers):
            if not isinstance(mixer, Mamba1Config | AttentionConfig):
                raise Inexpressible(f"layer {i} is {mixer.mechanism}, not Mamba or attention")
        mixtures, dense = experts.mixtures_and_dense(model)
        mixture = experts.first_of(mixtures)
        hidden = only_value(
            (x.hidden for x in (m or d for m, d in zip(mixtures, dense))), "the hidden size"
        )
        found = {
            **parts.size_keys(model),
            **selective.mamba1_keys(model, mamba, selective.PREFIXED),
            **_every_keys("attn_layer", [isinstance(x, AttentionConfig) for x in mixers]),
            **_every_keys("expert_layer", [x is not None for x in mixtures]),
            "intermediate_size": hidden,
            "num_experts": 1 if mixture is None else mixture.experts,
            "num_experts_per_tok": 1 if mixture is None else mixture.top_k,
            "mamba_expand": selective.expand(model, mamba[0]) if mamba else 2,
            **parts.NO_HEADS,
        }
        return found | (parts.head_keys(model, attention) if attention else {})

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        found = [*norm(model, "input_layernorm", "mixer_norm")]
        if isinstance(mixer, Mamba1Config):
            found += selective.mamba1_rules(model, mixer, "mamba")
        else:
            found += parts.attention_rules(model, mixer)
        found += norm(model, "pre_ff_layernorm", "mlp_norm")
        if isinstance(feedforward, MoEConfig):
            return found + experts.expert_rules(feedforward, "feed_forward", router="router")
        return found + parts.gated_rules(feedforward, "feed_forward")


def _every(keys: Keys, name: str, period: int, offset: int, depth: int) -> list[bool]:
    """Whether each layer is the one at `offset` of its `period`."""
    period = keys.integer(f"{name}_period", period)
    offset = keys.integer(f"{name}_offset", offset)
    if not 0 <= offset < period:
        keys.refuse(f"{name}_offset", f"is {offset}: it must be less than the period, {period}")
    return [i % period == offset for i in range(depth)]


def _every_keys(name: str, chosen: Sequence[bool]) -> dict[str, int]:
    """The inverse of `_every`; the period is longer than the model where no layer is chosen.

    Raises:
      Inexpressible: if the chosen layers do not repeat in a period.
    """
    depth = len(chosen)
    for period in range(1, depth + 2):
        for offset in range(period):
            if [i % period == offset for i in range(depth)] == [*chosen]:
                return {f"{name}_period": period, f"{name}_offset": offset}
    which = [i for i, x in enumerate(chosen) if x]
    raise Inexpressible(f"{name}_period and {name}_offset cannot choose the layers {which}")
