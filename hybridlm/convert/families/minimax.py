"""MiniMax-01 (arXiv 2501.08313): Lightning attention, softmax attention, experts, weighed sums."""

from collections.abc import Iterable
from typing import Any, ClassVar

from hybridlm.convert import experts, parts
from hybridlm.convert.family import Family, Inexpressible, norm, only_value, require_block
from hybridlm.convert.gated_delta import LINEAR
from hybridlm.convert.keys import Keys
from hybridlm.convert.layout import LayerSettings, laid_out
from hybridlm.convert.table import Rule, linear, rule
from hybridlm.convert.transforms import TRANSPOSED, Split, chain
from hybridlm.models.feedforward import FeedForwardConfig
from hybridlm.models.feedforward.moe import MoEConfig
from hybridlm.models.mixers import MixerConfig
from hybridlm.models.mixers.attention import AttentionConfig
from hybridlm.models.mixers.lightning import LightningConfig
from hybridlm.models.settings import ModelConfig

#: Of the norm of Lightning attention's output: the class has no key for it.
NORM_EPS = 1e-6


class MiniMax(Family):
    """Each half reads the normed stream and is added to it; the decays depend on the layer."""

    architecture: ClassVar[str] = "MiniMaxForCausalLM"
    model_type: ClassVar[str] = "minimax"
    models: ClassVar[str] = "MiniMax-Text-01, MiniMax-M1"
    ignored: ClassVar[frozenset[str]] = Family.ignored | experts.TRAINING
    #: What the class computes from the decays, and saves.
    optional: ClassVar[tuple[str, ...]] = (
        *Family.optional,
        "*.self_attn.slope_rate",
        "*.self_attn.query_decay",
        "*.self_attn.key_decay",
        "*.self_attn.diagonal_decay",
    )

    def settings(self, keys: Keys) -> dict[str, Any]:
        depth = keys.integer("num_hidden_layers")
        default = [parts.FULL if (i + 1) % 2 else LINEAR for i in range(depth)]
        types = parts.layer_types(keys, default, (LINEAR, parts.FULL))
        heads = parts.heads(keys, kv_heads=8)
        full = heads | {
            "rope": parts.rope(keys, 1_000_000.0, whole=True),
            "window": keys.integer("sliding_window", None),
        }
        keys.only("hidden_act", "silu", "swish", why="Lightning attention has silu here")
        keys.harmless("block_size", "router_jitter_noise", "router_aux_loss_coef")
        mixture = {
            "kind": "moe",
            "experts": keys.integer("num_local_experts", keys.integer("num_experts", 8)),
            "top_k": keys.integer("num_experts_per_tok", 2),
            "hidden": keys.integer("intermediate_size"),
            "router": {"scores": "softmax", "normalize": True},
        }
        layers = []
        for i, kind in enumerate(types):
            lightning = {
                "kind": "lightning",
                "heads": heads["heads"],
                "head_dim": heads["head_dim"],
                "decay_scale": 1 - i / (depth - 1 + 1e-5) + 1e-5,
                "norm_eps": NORM_EPS,
            }
            mixer = ("full", full) if kind == parts.FULL else ("lightning", lightning)
            layers.append(LayerSettings(*mixer, mixture, "moe"))
        found = laid_out(layers)
        joins = {kind: self._joins(keys, kind) for kind in ("full", "linear")}
        found["blocks"] = {
            name: joins["full" if mixer["kind"] == "attention" else "linear"]
            for name, mixer in found["mixers"].items()
        }
        sizes = parts.sizes(keys, tied=False) | {"norm_eps": keys.number("rms_norm_eps", 1e-5)}
        return sizes | found

    def _joins(self, keys: Keys, kind: str) -> dict[str, Any]:
        return {
            "norms": "normed",
            "mixer_keep": keys.number(f"{kind}_attn_alpha_factor", 1),
            "mixer_add": keys.number(f"{kind}_attn_beta_factor", 1),
            "mlp_keep": keys.number("mlp_alpha_factor", 1),
            "mlp_add": keys.number("mlp_beta_factor", 1),
        }

    def config(self, model: ModelConfig) -> dict[str, Any]:
        require_block(model, "normed")
        found: dict[str, Any] = {"layer_types": []}
        attention, sizes = [], set()
        for i, layer in enumerate(model.layout.layers):
            mixer, joins = model.mixer_of(layer), model.block_of(layer)
            if isinstance(mixer, AttentionConfig):
                attention.append(mixer)
                sizes.add((mixer.heads, mixer.head_size(model.width)))
                name, kind = "full", parts.FULL
            elif isinstance(mixer, LightningConfig):
                sizes.add((mixer.heads, mixer.head_size(model.width)))
                name, kind = "linear", LINEAR
            else:
                raise Inexpressible(f"layer {i} is {mixer.mechanism}, not lightning or attention")
            if len(sizes) > 1:
                raise Inexpressible(f"layer {i} has heads of other number or size than layer 0")
            found["layer_types"].append(kind)
            found[f"{name}_attn_alpha_factor"] = joins.mixer_keep
            found[f"{name}_attn_beta_factor"] = joins.mixer_add
            found["mlp_alpha_factor"], found["mlp_beta_factor"] = joins.mlp_keep, joins.mlp_add
        ((heads, size),) = sizes
        mixtures, _ = experts.mixtures_and_dense(model)
        mixture = only_value(mixtures, "the mixture of experts")
        if mixture is None:
            raise Inexpressible("layer 0 has no mixture of experts")
        found |= parts.size_keys(model) | {
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": size,
            "num_local_experts": mixture.experts,
            "num_experts_per_tok": mixture.top_k,
            "intermediate_size": mixture.hidden,
        }
        if attention:
            kv_heads = only_value((x.kv_heads for x in attention), "kv_heads")
            rope = parts.rope_keys(parts.required_rope(attention))
            window = only_value((x.window for x in attention), "window")
            found |= {"num_key_value_heads": kv_heads, "rope_parameters": rope}
            found["sliding_window"] = window
        return found

    def layer(
        self, model: ModelConfig, index: int, mixer: MixerConfig, feedforward: FeedForwardConfig
    ) -> Iterable[Rule]:
        found = [r for names in parts.PRENORM.items() for r in norm(model, *names)]
        if isinstance(mixer, LightningConfig):
            found += _lightning_rules(mixer, mixer.head_size(model.width))
        elif isinstance(mixer, AttentionConfig):
            found += parts.attention_rules(model, mixer)
        if isinstance(feedforward, MoEConfig):
            found += experts.expert_rules(feedforward, "block_sparse_moe", matrices=experts.MIXTRAL)
        return found


def _lightning_rules(mixer: LightningConfig, size: int) -> list[Rule]:
    """qkv_proj holds q, k and v of a head, then the next head's."""
    three = chain(Split((size, size, size), mixer.heads), TRANSPOSED)
    names = tuple(f"mixer.{x}.kernel" for x in ("q", "k", "v"))
    return [
        rule("self_attn.qkv_proj.weight", names, three),
        *linear("self_attn.output_gate", "mixer.gate"),
        rule("self_attn.norm.weight", "mixer.norm.norm.scale"),
        *linear("self_attn.out_proj", "mixer.out"),
    ]
