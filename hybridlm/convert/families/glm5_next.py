"""GLM-5.3-Flash's text model: Kimi Delta Attention, sparse attention to pools, four residual streams."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from hybridlm.convert import experts, grouped_experts, latent, parts
from hybridlm.convert.families.kimi_linear import delta_rules
from hybridlm.convert.family import Family, Inexpressible, norm, only_value, require_block
from hybridlm.convert.gated_delta import LINEAR
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule, rule
from hybridlm.convert.transforms import TRANSPOSED
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.dense import GatedConfig
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.dsa import DSAConfig
from hybridlm.models.mixers.kda import KDAConfig
from hybridlm.models.settings import ModelConfig

INDEXED = "indexed_attention"
LIMIT = 10.0  # the class's `swiglu_limit`
INDEXER = "indexer"


class Glm5Next(Family):
    """Three layers of Kimi Delta Attention to one of latent attention to the pools of an indexer.

    transformers has the text model only as a part of the vision-language class, and exports are written
    as that class.
    """

    architecture: ClassVar[str] = "Glm5NextForConditionalGeneration"
    model_type: ClassVar[str] = "glm5_next_text"
    wrapper: ClassVar[str | None] = "glm5_next"
    models: ClassVar[str] = "GLM-5.3-Flash, text (without quantisation)"
    ignored: ClassVar[frozenset[str]] = Family.ignored | experts.TRAINING | {"index_loss"}
    #: Layers that predict further tokens.
    optional: ClassVar[tuple[str, ...]] = (*Family.optional, "model.layers.45.*")

    def settings(self, keys: Keys) -> dict[str, Any]:
        depth = keys.integer("num_hidden_layers")
        keys.harmless("num_nextn_predict_layers", "num_mtp_layers")
        keys.only("hidden_act", "silu", "swish", why="the experts of the class have silu")
        types = _types(keys, depth)
        kda, limit = _delta(keys), keys.number("swiglu_limit", LIMIT)
        dsa = _indexed(keys)
        mlps = keys.list(
            "mlp_layer_types", depth, ["dense" if i < 3 else "sparse" for i in range(depth)]
        )
        if other := {*mlps} - {"dense", "sparse"}:
            keys.refuse("mlp_layer_types", f"has {min(other)!r}: this family has dense and sparse")
        gated = {
            "kind": "gated",
            "hidden": keys.integer("intermediate_size", 12_288),
            "activation": "silu",
            "clamp": limit,
        }
        mixture = grouped_experts.mixture_settings(
            keys,
            grouped_experts.DEEPSEEK,
            experts=288,
            hidden=2048,
            scale=2.5,
            groups=1,
            top_groups=1,
        )
        feeds = {"dense": (gated, "mlp"), "sparse": (mixture | {"clamp": limit}, "moe")}
        indexers = _indexers(keys, types)
        layers = [
            LayerSettings(*(("kda", kda) if x is None else (x[0], dsa | x[1])), *feeds[mlp])
            for x, mlp in zip(indexers, mlps, strict=True)
        ]
        sizes = parts.sizes(keys, tied=False) | {"norm_eps": keys.number("rms_norm_eps", 1e-5)}
        streams = {
            "count": keys.integer("hc_mult", 4),
            "iterations": keys.integer("hc_sinkhorn_iters", 20),
            "eps": keys.number("hc_eps", 1e-6),
        }
        return sizes | laid_out(layers) | {"streams": streams}

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "prenorm")
        if model.streams is None:
            raise Inexpressible("it has one residual stream")
        types, delta, indexed, indexers = [], [], [], []
        for i, ((_, mixer), below) in enumerate(
            zip(model.layer_mixers(), model.caches_read(), strict=True)
        ):
            if isinstance(mixer, KDAConfig):
                types.append(LINEAR)
                delta.append(mixer)
            elif isinstance(mixer, DSAConfig):
                types.append(INDEXED)
                indexed.append(latent.alone(mixer))
            else:
                raise Inexpressible(f"layer {i} is {mixer.mechanism}, not kda or dsa")
            indexers.append("full" if below is None else "shared")
        mixtures, _ = experts.mixtures_and_dense(model)
        found = {
            **parts.size_keys(model),
            **grouped_experts.feedforward_keys(model, grouped_experts.DEEPSEEK),
            "layer_types": types,
            "indexer_types": indexers,
            "mlp_layer_types": ["dense" if x is None else "sparse" for x in mixtures],
            "swiglu_limit": only_value(map(_limit, model.layer_feedforwards()), "clamp"),
            "hc_mult": model.streams.count,
            "hc_sinkhorn_iters": model.streams.iterations,
            "hc_eps": model.streams.eps,
        }
        if delta:
            x = only_value(delta, "Kimi Delta Attention")
            sizes = x.sizes(model.width)
            found["linear_num_heads"], found["linear_head_dim"] = sizes.heads, sizes.key_size
            found["linear_conv_kernel_dim"] = x.conv_width
            found["linear_lower_bound"] = x.lower_bound
        if indexed:
            x = only_value(indexed, "sparse attention")
            found |= {
                **latent.latent_keys(indexed),
                **latent.indexer_keys(indexed),
                "index_kpool": x.pool,
                "index_kpool_always_select_tail": x.pool_tail,
            }
        return found

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        found = [r for names in parts.PRENORM.items() for r in norm(model, *names)]
        for theirs, ours in (("hc_attn", "mixer_streams"), ("hc_ffn", "mlp_streams")):
            found += [
                rule(f"{theirs}_fn", f"{ours}.kernel", TRANSPOSED),
                rule(f"{theirs}_base", f"{ours}.bias"),
                rule(f"{theirs}_scale", f"{ours}.scales"),
            ]
        if isinstance(mixer, DSAConfig):
            found += latent.latent_rules(mixer)
            if latent.has_indexer(mixer) and mixer.pooling:
                theirs, ours = "self_attn.indexer.index_kpool_compress", "mixer.indexer.pool"
                found += [
                    rule(f"{theirs}_ape", f"{ours}.places"),
                    rule(f"{theirs}_gate", f"{ours}.gate.kernel", TRANSPOSED),
                ]
        elif isinstance(mixer, KDAConfig):
            found += delta_rules(mixer.sizes(model.width), a_log=False)
        if isinstance(feedforward, MoEConfig):
            return found + experts.expert_rules(feedforward, shared="shared_experts")
        return found + parts.gated_rules(feedforward)


def _types(keys: Keys, depth: int) -> list[str]:
    """The type of each layer."""
    default = [INDEXED if i % 4 == 3 else LINEAR for i in range(depth)]
    types = parts.layer_types(keys, default, (LINEAR, INDEXED, parts.FULL))
    return [INDEXED if x == parts.FULL else x for x in types]


def _delta(keys: Keys) -> dict[str, Any]:
    """The settings of Kimi Delta Attention; an older object has them, too."""
    found = {
        "kind": "kda",
        "heads": keys.integer("linear_num_heads", 64),
        "head_dim": keys.integer("linear_head_dim", 128),
        "conv_width": keys.integer("linear_conv_kernel_dim", 4),
    }
    bound = keys.number("linear_lower_bound", -5.0, nullable=True)
    own = keys.object("linear_attn_config", None)
    if own is not None:
        found["heads"] = own.integer("num_heads", found["heads"])
        found["head_dim"] = own.integer("head_dim", found["head_dim"])
        found["conv_width"] = own.integer("short_conv_kernel_size", found["conv_width"])
        bound = own.number("gate_lower_bound", bound, nullable=True)
        if own.flag("safe_gate", True) and bound is None:
            bound = -5.0
        own.harmless("full_attn_layers", "kda_layers")
        own.finish()
    return found | {"lower_bound": bound}


def _indexed(keys: Keys) -> dict[str, Any]:
    """The settings of sparse latent attention, which has no positions."""
    keys.only("qk_rope_head_dim", 0, why="the class has no RoPE")
    keys.harmless("qk_rope_head_dim")
    pool = keys.integer("index_kpool", 16)
    if pool < 2:
        keys.refuse("index_kpool", f"is {pool}: hybridlm reads pools of 2 tokens and more")
    found = latent.latent_settings(keys, heads=64, q_rank=1536, nope=256, rope=0, value=256)
    return found | {
        **latent.indexer_settings(keys, heads=32, interleaved=False),
        "rope": None,
        "norm_eps": None,
        "pool": pool,
        "pool_tail": keys.flag("index_kpool_always_select_tail", True),
        "index_loss": 0.0,
    }


def _indexers(keys: Keys, types: Sequence[str]) -> list[tuple[str, dict[str, str]] | None]:
    """Of each layer of sparse attention, its name and whose indexer it uses; None for the others."""
    modes = latent.indexer_types(keys, len(types))
    found: list[tuple[str, dict[str, str]] | None] = []
    for i, (kind, mode) in enumerate(zip(types, modes, strict=True)):
        after = i + 1 < len(types) and types[i + 1] == INDEXED and modes[i + 1] == "shared"
        if kind == LINEAR:
            found.append(None)
        elif mode == "full":
            found.append(("dsa", {"index_out": INDEXER} if after else {}))
        elif i and types[i - 1] == INDEXED and modes[i - 1] == "full":
            found.append(("dsa_shared", {"index_in": INDEXER}))
        else:
            keys.refuse(
                "indexer_types",
                f"is 'shared' in layer {i}: in this class a layer can use only the indexer of the layer just below",
            )
    return found


def _limit(feedforward: FeedForwardConfig) -> float:
    """The limit of a gated feed-forward or of experts.

    Raises:
      Inexpressible: where there is none.
    """
    if isinstance(feedforward, GatedConfig | MoEConfig) and feedforward.clamp is not None:
        return feedforward.clamp
    raise Inexpressible(f"its feed-forward {feedforward.kind_name} has no clamp")
