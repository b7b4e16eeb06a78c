"""DeepSeek-V3 (arXiv 2412.19437), V3.2 (arXiv 2512.02556) and GLM-5: latent attention, sparse or not."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import experts, grouped_experts, latent, parts
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
from hybridlm.models.mixers.dsa import DSAConfig
from hybridlm.models.mixers.mla import MLAConfig
from hybridlm.models.settings import ModelConfig


class DeepSeekV3(Family):
    """Pre-norm blocks with latent attention; the first layers are dense, the others have experts."""

    architecture: ClassVar[str] = "DeepseekV3ForCausalLM"
    model_type: ClassVar[str] = "deepseek_v3"
    models: ClassVar[str] = "DeepSeek-V3, R1, Kimi K2 (without quantisation)"
    ignored: ClassVar[frozenset[str]] = Family.ignored | experts.TRAINING
    #: The layer that predicts two tokens ahead.
    optional: ClassVar[tuple[str, ...]] = (*Family.optional, "model.layers.61.*")
    mixer: ClassVar[type[MLAConfig]] = MLAConfig
    heads: ClassVar[int] = 128
    q_rank: ClassVar[int] = 1536
    nope: ClassVar[int] = 128
    value: ClassVar[int] = 128
    eps: ClassVar[float] = 1e-6
    groups: ClassVar[dict[str, int]] = {"groups": 8, "top_groups": 4}

    def settings(self, keys: Keys) -> dict[str, Any]:
        depth = keys.integer("num_hidden_layers")
        keys.harmless("num_nextn_predict_layers", "num_mtp_layers")
        mixer = self.attention(keys)
        types = self.feedforward_types(keys, depth)
        gated = parts.gated(keys) if "dense" in types else None
        keys.harmless("intermediate_size")
        mixture = grouped_experts.mixture_settings(
            keys, grouped_experts.DEEPSEEK, experts=256, hidden=2048, scale=2.5, **self.groups
        )
        feeds = {"dense": (gated, "mlp"), "sparse": (mixture, "moe")}
        layers = [
            LayerSettings(name, mixer | more, *feeds[x])
            for (name, more), x in zip(self.indexers(keys, mixer, depth), types, strict=True)
        ]
        sizes = parts.sizes(keys, tied=False)
        return sizes | {"norm_eps": keys.number("rms_norm_eps", self.eps)} | laid_out(layers)

    def attention(self, keys: Keys) -> dict[str, Any]:
        """The settings of a layer's mixer."""
        mixer = latent.latent_settings(
            keys, heads=self.heads, q_rank=self.q_rank, nope=self.nope, value=self.value
        )
        scale = latent.yarn_scale(keys, mixer["qk_nope"] + mixer["qk_rope"])
        rope = parts.rope(keys, whole=True)
        rope["interleaved"] = self.interleaved(keys)
        return mixer | {"rope": rope, "scale": scale}

    def indexers(
        self, keys: Keys, mixer: dict[str, Any], depth: int
    ) -> list[tuple[str, dict[str, str]]]:
        """The name of each layer's mixer, and settings of its own."""
        return [(mixer["kind"], {})] * depth

    def interleaved(self, keys: Keys) -> bool:
        """Whether RoPE rotates neighbours."""
        return keys.flag("rope_interleave", True)

    def feedforward_types(self, keys: Keys, depth: int) -> list[str]:
        """Whether each layer is "dense" or "sparse"."""
        dense = keys.integer("first_k_dense_replace", 3)
        return ["dense" if i < dense else "sparse" for i in range(depth)]

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        mixers = [latent.alone(x) for x in mixers_of(model, self.mixer)]
        mixer = only_value(mixers, "latent attention")
        if mixer.rope is None:
            raise Inexpressible("layer 0 has no RoPE")
        return {
            **parts.size_keys(model),
            **latent.latent_keys(mixers),
            **grouped_experts.feedforward_keys(model, grouped_experts.DEEPSEEK),
            **self.own_keys(model, mixers),
            "rope_parameters": parts.rope_keys(mixer.rope) | latent.mscale_keys(mixer),
        }

    def own_keys(self, model: ModelConfig, mixers: list[Any]) -> dict[str, Any]:
        """The keys of `interleaved` and `feedforward_types`."""
        mixtures, _ = experts.mixtures_and_dense(model)
        dense = next((i for i, x in enumerate(mixtures) if x is not None), model.depth)
        return {"first_k_dense_replace": dense, "rope_interleave": mixers[0].rope.interleaved}

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        found = [r for names in parts.PRENORM.items() for r in norm(model, *names)]
        if isinstance(mixer, MLAConfig):
            found += latent.latent_rules(mixer)
        if isinstance(feedforward, MoEConfig):
            return found + experts.expert_rules(feedforward, shared="shared_experts")
        return found + parts.gated_rules(feedforward)


class DeepSeekV32(DeepSeekV3):
    """As DeepSeek-V3, with an indexer that chooses the tokens each layer attends to."""

    architecture: ClassVar[str] = "DeepseekV32ForCausalLM"
    model_type: ClassVar[str] = "deepseek_v32"
    models: ClassVar[str] = "DeepSeek-V3.2 (without quantisation)"
    ignored: ClassVar[frozenset[str]] = DeepSeekV3.ignored | {"index_loss"}
    mixer: ClassVar[type[MLAConfig]] = DSAConfig
    index_heads: ClassVar[int] = 64
    index_interleaved: ClassVar[bool] = False

    def attention(self, keys: Keys) -> dict[str, Any]:
        keys.only("mlp_bias", False)
        types = keys.list("layer_types", default=[])
        if other := {*types} - {"indexed_attention", "full_attention"}:
            keys.refuse("layer_types", f"has {min(other)!r}: this family has indexed_attention")
        pairs = self.index_interleaved
        keys.only(
            "indexer_rope_interleave",
            pairs,
            why=f"the class's indexer rotates {'neighbours' if pairs else 'halves'}",
        )
        return super().attention(keys) | latent.indexer_settings(
            keys, heads=self.index_heads, interleaved=pairs
        )

    def interleaved(self, keys: Keys) -> bool:
        keys.only("rope_interleave", True, why="the class rotates neighbours")
        return True

    def feedforward_types(self, keys: Keys, depth: int) -> list[str]:
        return grouped_experts.feedforward_types(keys, depth, 3)

    def own_keys(self, model: ModelConfig, mixers: list[Any]) -> dict[str, Any]:
        mixtures, _ = experts.mixtures_and_dense(model)
        return {
            "mlp_layer_types": ["dense" if x is None else "sparse" for x in mixtures],
            **latent.indexer_keys(mixers),
        }


class GlmMoeDsa(DeepSeekV32):
    """As DeepSeek-V3.2; the indexer rotates neighbours, and layers may share that of a layer below."""

    architecture: ClassVar[str] = "GlmMoeDsaForCausalLM"
    model_type: ClassVar[str] = "glm_moe_dsa"
    models: ClassVar[str] = "GLM-5, GLM-5.1 (indexers that layers share)"
    optional: ClassVar[tuple[str, ...]] = (*Family.optional, "model.layers.78.*")
    heads: ClassVar[int] = 64
    q_rank: ClassVar[int] = 2048
    nope: ClassVar[int] = 192
    value: ClassVar[int] = 256
    eps: ClassVar[float] = 1e-5
    groups: ClassVar[dict[str, int]] = {"groups": 1, "top_groups": 1}
    index_heads: ClassVar[int] = 32
    index_interleaved: ClassVar[bool] = True

    def indexers(
        self, keys: Keys, mixer: dict[str, Any], depth: int
    ) -> list[tuple[str, dict[str, str]]]:
        return indexers(keys, depth)

    def own_keys(self, model: ModelConfig, mixers: list[Any]) -> dict[str, Any]:
        below = model.caches_read()
        types = ["full" if x is None else "shared" for x in below]
        shares = {"indexer_types": types} if "shared" in types else {}  # the class's own is "full"
        return super().own_keys(model, mixers) | shares


def indexers(keys: Keys, depth: int) -> list[tuple[str, dict[str, str]]]:
    """The name of each layer's mixer, and whether it has an indexer that the next one uses."""
    types = latent.indexer_types(keys, depth)
    found = []
    for kind, above in zip(types, [*types[1:], "full"], strict=True):
        if kind == "shared":
            found.append(("dsa_shared", {"index_in": "indexer"}))
        else:
            found.append(("dsa", {"index_out": "indexer"} if above == "shared" else {}))
    return found
