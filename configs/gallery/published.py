"""What the recipes of published models share: data, optimizer, the flag "smoke".

This file is not a recipe. The recipes in this folder import it as `published`.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from common import parse_arg, small_run

#: Sizes that "smoke" gives to mixers and feed-forwards, where they are larger.
_MIXER_SIZES = {
    "attention": dict(heads=4, head_dim=16, window=16, chunk=16),
    "mla": dict(heads=4, kv_rank=16, q_rank=16, qk_nope=16, qk_rope=8, value_dim=16, window=16),
    "dsa": dict(
        heads=4,
        kv_rank=16,
        q_rank=16,
        qk_nope=16,
        qk_rope=8,
        value_dim=16,
        index_heads=2,
        index_dim=16,
        top_k=16,
    ),
    "moba": dict(heads=4, head_dim=16, block=16, top_k=2),
    "gdn": dict(heads=2, value_heads=4, head_dim=16, value_dim=16),
    "kda": dict(heads=4, head_dim=16),
    "mamba1": dict(inner=128, dt_rank=8),
    "mamba2": dict(heads=8, head_dim=16, state_dim=16, groups=2),
    "lightning": dict(heads=4, head_dim=16),
    "rglru": dict(heads=4, recurrent_width=64),
    "mlstm": dict(heads=4),
    "short_conv": {},
}
_MOE_SIZES = dict(experts=8, top_k=2, hidden=32, shared_hidden=32, latent=32)


def attention(heads: int, kv_heads: int, head_dim: int, **settings: Any) -> dict[str, Any]:
    """Settings of softmax attention."""
    return dict(kind="attention", heads=heads, kv_heads=kv_heads, head_dim=head_dim, **settings)


def recipe(arg: str, *, seq_len: int = 4096, **model: Any) -> ConfigDict:
    """The recipe of a published model, from its `ModelConfig`'s settings.

    It trains on the data of `configs/mixers`, the State of the Union addresses as bytes: at the
    published size a run needs data and an optimizer of its own. With `arg` "smoke" the model has each
    of its kinds of layers once, and is small enough for seconds on a CPU.
    """
    flags = parse_arg(arg, smoke=False)
    c = small_run()
    c.model = ConfigDict(_small(model) if flags["smoke"] else model)
    c.data.seq_len = seq_len
    c.train.dtype = "bfloat16"
    if flags["smoke"]:
        c.train.dtype = "float32"
        c.data.seq_len, c.data.batch_size = 64, 4
        c.train.steps, c.train.log_every = 8, 2
        c.train.eval_every, c.train.checkpoint_every, c.train.eval_sequences = 4, 4, 8
        c.optimizer.warmup_steps = 2
    return c


def _small(model: Mapping[str, Any]) -> dict[str, Any]:
    """The model with small sizes, and each kind of layer once."""
    terms = " ".join(model.get(k, "") for k in ("prefix", "pattern", "suffix")).split()
    kinds = list(dict.fromkeys(term.partition("*")[0] for term in terms))
    small = dict(model, width=64, depth=len(kinds), pattern=" ".join(kinds), vocab_size=512)
    small.update(prefix="", suffix="")
    if model.get("per_layer"):
        small["per_layer"] = dict(model["per_layer"], size=16)
    small["mixers"] = {name: _small_mixer(mixer) for name, mixer in model["mixers"].items()}
    if model["mlp"] is not None:
        small["mlp"] = _small_feedforward(model["mlp"])
    small["feedforwards"] = {
        name: _small_feedforward(f) for name, f in model.get("feedforwards", {}).items()
    }
    return small


def _small_mixer(mixer: Mapping[str, Any]) -> dict[str, Any]:
    if mixer["kind"] == "parallel":
        return dict(mixer, branches={n: _small_mixer(m) for n, m in mixer["branches"].items()})
    small = _at_most(mixer, _MIXER_SIZES[mixer["kind"]])
    if mixer.get("kv_heads"):
        small["kv_heads"] = max(1, small["heads"] * mixer["kv_heads"] // mixer["heads"])
    if (mixer.get("rope") or {}).get("fraction", 1) != 1:
        small["rope"] = dict(mixer["rope"], fraction=0.5)  # of 16 dimensions: an even number
    return small


def _small_feedforward(feedforward: Mapping[str, Any]) -> dict[str, Any]:
    if feedforward["kind"] == "dense_beside_moe":
        halves = {name: _small_feedforward(feedforward[name]) for name in ("dense", "moe")}
        return feedforward | halves
    if feedforward["kind"] != "moe":
        return _at_most(feedforward, dict(hidden=128))
    small = _at_most(feedforward, _MOE_SIZES)
    router = dict(feedforward.get("router", {}))
    if router.get("groups", 1) > 1:
        router.update(groups=2, top_groups=1)
    return dict(small, router=router)


def _at_most(settings: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """`settings` with those in `sizes` reduced to these; absent ones stay absent."""
    reduced = {k: min(settings[k], size) for k, size in sizes.items() if settings.get(k)}
    return {**settings, **reduced}
