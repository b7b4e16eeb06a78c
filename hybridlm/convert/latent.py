"""Multi-head latent attention and its sparse indexer, as transformers writes them."""

import dataclasses
import math
from typing import Any

from hybridlm.convert import parts
from hybridlm.convert.family import Inexpressible, only_value
from hybridlm.convert.keys import Keys
from hybridlm.convert.table import Rule, linear, rule
from hybridlm.models.mixers.dsa import DSAConfig
from hybridlm.models.mixers.mla import MLAConfig

#: The classes give the norms of the latents no epsilon, so it is that of the norm's class.
NORM_EPS = 1e-6


def latent_settings(
    keys: Keys,
    *,
    heads: int,
    q_rank: int | None,
    nope: int = 128,
    rope: int = 64,
    value: int = 128,
) -> dict[str, Any]:
    """The settings of the mixer without RoPE; the arguments are the class's defaults."""
    count = keys.integer("num_attention_heads", heads)
    keys.only("attention_bias", False, why="hybridlm has no biases in latent attention")
    if keys.integer("num_key_value_heads", count) != count:
        keys.refuse("num_key_value_heads", f"must be num_attention_heads {count}")
    keys.harmless("head_dim", "qk_head_dim")
    return {
        "kind": "mla",
        "heads": count,
        "kv_rank": keys.integer("kv_lora_rank", 512),
        "q_rank": keys.integer("q_lora_rank", q_rank, nullable=True),
        "qk_nope": keys.integer("qk_nope_head_dim", nope),
        "qk_rope": keys.integer("qk_rope_head_dim", rope),
        "value_dim": keys.integer("v_head_dim", value),
        "norm_eps": NORM_EPS,
    }


def latent_keys(layers: list[MLAConfig]) -> dict[str, Any]:
    """The inverse of `latent_settings`."""
    x = only_value(layers, "latent attention")
    return {
        "num_attention_heads": x.heads,
        "num_key_value_heads": x.heads,
        "kv_lora_rank": x.kv_rank,
        "q_lora_rank": x.q_rank,
        "qk_nope_head_dim": x.qk_nope,
        "qk_rope_head_dim": x.qk_rope,
        "v_head_dim": x.value_dim,
    }


def latent_rules(mixer: MLAConfig, theirs: str = "self_attn") -> list[Rule]:
    """The rules of the mixer."""
    if mixer.q_rank is None:
        queries = linear(f"{theirs}.q_proj", "mixer.q")
    else:
        queries = [
            *linear(f"{theirs}.q_a_proj", "mixer.q.down"),
            rule(f"{theirs}.q_a_layernorm.weight", "mixer.q.norm.scale"),
            *linear(f"{theirs}.q_b_proj", "mixer.q.up"),
        ]
    return [
        *queries,
        *linear(f"{theirs}.kv_a_proj_with_mqa", "mixer.kv_down"),
        rule(f"{theirs}.kv_a_layernorm.weight", "mixer.kv_norm.scale"),
        *linear(f"{theirs}.kv_b_proj", "mixer.kv_up"),
        *linear(f"{theirs}.o_proj", "mixer.out"),
        *(indexer_rules(f"{theirs}.indexer") if has_indexer(mixer) else ()),
    ]


def alone(mixer: MLAConfig) -> MLAConfig:
    """The settings without the names of shared indexers."""
    if isinstance(mixer, DSAConfig):
        return dataclasses.replace(mixer, index_in=None, index_out=None)
    return mixer


def indexer_types(keys: Keys, depth: int) -> list[str]:
    """Whether each layer has an indexer ("full") or uses that of a layer below ("shared")."""
    pattern = keys.values.get("index_topk_pattern")
    keys.harmless("index_topk_pattern")
    given = "indexer_types" if pattern is None else "index_topk_pattern"
    if isinstance(pattern, str):
        pattern = [{"F": "full", "S": "shared"}.get(letter, letter) for letter in pattern]
    elif not (pattern is None or isinstance(pattern, list)):
        keys.refuse(given, f"must be letters F and S or a list, not {pattern!r}")
    every = max(keys.integer("index_topk_freq", 1), 1)
    first = keys.integer("index_skip_topk_offset", 2)
    if pattern is None:
        pattern = ["full" if max(i - first + 1, 0) % every == 0 else "shared" for i in range(depth)]
    types = keys.list("indexer_types", depth, pattern)
    given = "indexer_types" if "indexer_types" in keys.values else given
    if other := [x for x in types if x not in ("full", "shared")]:
        keys.refuse(given, f"has {other[0]!r}: this family has full and shared")
    if len(types) != depth or types[0] == "shared":
        keys.refuse(given, f"must be {depth} entries, of which the first is full")
    return types


def has_indexer(mixer: MLAConfig) -> bool:
    """Whether a layer has an indexer of its own."""
    return isinstance(mixer, DSAConfig) and mixer.index_in is None


def indexer_settings(keys: Keys, *, heads: int, interleaved: bool) -> dict[str, Any]:
    """The settings that sparse attention has beside `latent_settings`; `heads` is the default."""
    if keys.integer("q_lora_rank", 1, nullable=True) is None:
        keys.refuse("q_lora_rank", "is null: the indexer reads the queries' latent")
    return {
        "kind": "dsa",
        "index_heads": keys.integer("index_n_heads", heads),
        "index_dim": keys.integer("index_head_dim", 128),
        "top_k": keys.integer("index_topk", 2048),
        "index_interleaved": interleaved,
    }


def indexer_keys(layers: list[DSAConfig]) -> dict[str, Any]:
    """The inverse of `indexer_settings`."""
    x = only_value(layers, "sparse attention")
    return {"index_n_heads": x.index_heads, "index_head_dim": x.index_dim, "index_topk": x.top_k}


def indexer_rules(theirs: str = "self_attn.indexer", ours: str = "mixer.indexer") -> list[Rule]:
    """The rules of the indexer."""
    return [
        *linear(f"{theirs}.wq_b", f"{ours}.q"),
        *linear(f"{theirs}.wk", f"{ours}.k"),
        rule(f"{theirs}.k_norm.weight", f"{ours}.k_norm.scale"),
        rule(f"{theirs}.k_norm.bias", f"{ours}.k_norm.bias"),
        *linear(f"{theirs}.weights_proj", f"{ours}.weights"),
    ]


def yarn_scale(keys: Keys, key_size: int) -> float | None:
    """The factor on logits, which YaRN's `mscale_all_dim` changes; None is that without it."""
    given = parts.rope_object(keys)
    if given.text("rope_type", given.text("type", "default")) == "default":
        return None
    everywhere = given.number("mscale_all_dim", None)
    if not everywhere:
        return None
    return _scale(key_size, given.number("factor", 1.0), everywhere)


def mscale_keys(mixer: MLAConfig) -> dict[str, float]:
    """The key `mscale_all_dim` that gives the mixer's factor on logits.

    Without `mscale` the factor on rotated dimensions does not depend on it.

    Raises:
      Inexpressible: if there is none.
    """
    if mixer.scale is None or mixer.scale == mixer.key_size**-0.5:
        return {}
    yarn = mixer.rope and mixer.rope.yarn
    if yarn and yarn.factor > 1:
        square = mixer.scale * mixer.key_size**0.5
        wanted = (math.sqrt(square) - 1) / (0.1 * math.log(yarn.factor))
        for digits in range(2, 16):
            if _scale(mixer.key_size, yarn.factor, round(wanted, digits)) == mixer.scale:
                return {"mscale_all_dim": round(wanted, digits)}
    raise Inexpressible(f"its latent attention has the scale {mixer.scale}")


def _scale(key_size: int, factor: float, everywhere: float) -> float:
    grown = 0.1 * everywhere * math.log(factor) + 1 if factor > 1 else 1.0
    return key_size**-0.5 * grown * grown
