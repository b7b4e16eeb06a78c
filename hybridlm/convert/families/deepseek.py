"""DeepSeek-V3 (arXiv 2412.19437): latent attention, and experts that a bias balances."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import experts, latent, parts
from hybridlm.convert.family import (
    Family,
    Inexpressible,
    mixers_of,
    norm,
    only_value,
    require_block,
)
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.mla import MLAConfig
from hybridlm.models.settings import ModelConfig

NAMES = {
    "normalize": ("norm_topk_prob",),
    "experts": ("n_routed_experts", "num_local_experts"),
    "top_k": ("num_experts_per_tok",),
    "groups": ("n_group",),
    "shared": ("n_shared_experts",),
}


class DeepSeekV3(Family):
    """Pre-norm blocks with latent attention; the first layers are dense, the others have experts."""

    architecture: ClassVar[str] = "DeepseekV3ForCausalLM"
    model_type: ClassVar[str] = "deepseek_v3"
    models: ClassVar[str] = "DeepSeek-V3, R1, Kimi K2 (without quantisation)"
    ignored: ClassVar[frozenset[str]] = Family.ignored | experts.TRAINING
    #: The layer that predicts two tokens ahead.
    optional: ClassVar[tuple[str, ...]] = (*Family.optional, "model.layers.61.*")

    def settings(self, keys: Keys) -> dict[str, Any]:
        depth = keys.integer("num_hidden_layers")
        keys.harmless("num_nextn_predict_layers", "num_mtp_layers")
        mixer = latent.latent_settings(keys, heads=128, q_rank=1536)
        scale = latent.yarn_scale(keys, mixer["qk_nope"] + mixer["qk_rope"])
        rope = parts.rope(keys, whole=True)
        rope["interleaved"] = keys.flag("rope_interleave", True)
        mixer |= {"rope": rope, "scale": scale}
        dense = min(keys.integer("first_k_dense_replace", 3), depth)
        gated = parts.gated(keys) if dense else None
        keys.harmless("intermediate_size")
        mixture = latent.mixture_settings(
            keys, NAMES, experts=256, hidden=2048, scale=2.5, groups=8, top_groups=4
        )
        layers = [LayerSettings("mla", mixer, gated, "mlp")] * dense
        layers += [LayerSettings("mla", mixer, mixture, "moe")] * (depth - dense)
        return parts.sizes(keys, tied=False) | laid_out(layers)

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        mixers = mixers_of(model, MLAConfig)
        mixtures, _ = experts.mixtures_and_dense(model)
        dense = next((i for i, x in enumerate(mixtures) if x is not None), model.depth)
        mixer = only_value(mixers, "latent attention")
        if mixer.rope is None:
            raise Inexpressible("layer 0 has no RoPE")
        return {
            **parts.size_keys(model),
            **latent.latent_keys(mixers),
            **latent.feedforward_keys(model, NAMES),
            "first_k_dense_replace": dense,
            "rope_interleave": mixer.rope.interleaved,
            "rope_parameters": parts.rope_keys(mixer.rope) | latent.mscale_keys(mixer),
        }

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        found = [r for names in parts.PRENORM.items() for r in norm(model, *names)]
        if isinstance(mixer, MLAConfig):
            found += latent.latent_rules(mixer)
        if isinstance(feedforward, MoEConfig):
            return found + experts.expert_rules(feedforward, shared="shared_experts")
        return found + parts.gated_rules(feedforward)
