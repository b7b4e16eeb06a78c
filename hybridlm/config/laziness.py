"""What the recipes of `configs/laziness` share: the matrix of arXiv 2606.15378.

Seven architectures x five sizes x six token budgets, at 16,384 tokens of context from the start,
long and short documents 1:1. The published parameter counts without embeddings (S1 14,999,424, S2
31,470,080, S3 64,901,760, S4 104,427,264) are met exactly by widths of `SIZES` with heads of 64, 2
key/value heads and an MLP of 2.5 widths, and the counts with embeddings by 73,448 untied tokens; of
S5 only rounded counts are published. Optimizer, schedule, batch and RoPE's base are not published:
those here are ours.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from hybridlm.config import recipes
from hybridlm.errors import ConfigError
from hybridlm.settings.plain import flat

CONTEXT, VOCAB, KV_HEADS, HEAD_DIM = 16_384, 73_448, 2, 64
BUDGETS = (100, 200, 300, 400, 500, 1000)  # tokens a parameter


class Size(NamedTuple):
    """A model's shape, its learning rate, and sequences in a batch."""

    width: int
    depth: int
    lr: float
    batch: int
    params: int  # without embeddings, as published; of S5 as the shape gives it


SIZES = {
    "S1": Size(384, 10, 2e-3, 16, 14_999_424),
    "S2": Size(512, 12, 1.5e-3, 16, 31_470_080),
    "S3": Size(640, 16, 1e-3, 32, 64_901_760),
    "S4": Size(768, 18, 1e-3, 32, 104_427_264),
    "S5": Size(1280, 30, 5e-4, 64, 476_852_480),
}


def recipe(arg: str | None, architecture: str) -> ConfigDict:
    """One point of the matrix.

    Args:
      arg: comma-separated: a size ("S1", the default, to "S5"), a token budget ("100n", the
        default, to "1000n"), "nope" (no RoPE in the full layers), "smoke".
      architecture: of `LOCAL`.
    """
    chosen = [a for a in (arg or "").split(",") if a]
    names = [a for a in chosen if a in SIZES] or ["S1"]
    budgets = [a for a in chosen if a.removesuffix("n") in map(str, BUDGETS)] or ["100n"]
    flags = [a for a in chosen if a in ("nope", "smoke")]
    left = set(chosen) - set(names) - set(budgets) - set(flags)
    if left or len(names) > 1 or len(budgets) > 1:
        raise ConfigError(
            f"argument {arg!r}: give at most one of {', '.join(SIZES)}, one of"
            f" {', '.join(f'{b}n' for b in BUDGETS)}, nope, smoke"
        )
    size, budget = SIZES[names[0]], int(budgets[0].removesuffix("n"))
    c = ConfigDict()
    c.seed = 0
    c.model = ConfigDict()
    c.model.width, c.model.depth, c.model.vocab_size = size.width, size.depth, VOCAB
    c.model.tie_embeddings = False
    c.model.mlp = dict(kind="swiglu", hidden=5 * size.width // 2)
    c.model.mixers = ConfigDict()
    heads = size.width // HEAD_DIM
    attention = dict(kind="attention", heads=heads, kv_heads=KV_HEADS, rope=dict(theta=500_000.0))
    c.model.mixers.full = dict(attention, rope=None) if "nope" in flags else attention
    c.model.mixers.local = LOCAL[architecture](attention)
    c.model.pattern = "local full"

    c.data = ConfigDict()
    # Token shards that `hybridlm tokenize` writes, with one tokenizer of at most VOCAB ids.
    c.data.sources = dict(
        long=dict(kind="tokens", path="data/tokens/long", weight=1.0),
        short=dict(kind="tokens", path="data/tokens/short", weight=1.0),
    )
    c.data.seq_len, c.data.batch_size = CONTEXT, size.batch
    c.train = ConfigDict()
    c.train.steps = -(-budget * size.params // (CONTEXT * size.batch))
    c.train.dtype, c.train.remat = "bfloat16", "full"
    c.train.log_every, c.train.eval_every, c.train.checkpoint_every = 20, 1000, 500
    # Intermediate checkpoints stay: heads and Q/K distances are measured on them.
    c.train.keep_every = max(500, c.train.steps // 20 // 500 * 500)
    c.optimizer = dict(lr=size.lr, schedule="wsd", warmup_steps=min(500, c.train.steps // 10))
    c.optimizer.decay_steps, c.optimizer.weight_decay = c.train.steps // 10, 0.1
    c.mesh = dict(data=-1, fsdp=1)
    c.probes = dict(which=["heads"], interval=500)
    return _smoke(c) if "smoke" in flags else c


def sweep(architecture: str) -> Iterator[dict[str, Any]]:
    """Flat overrides of the recipe without argument for each size and budget of the matrix."""
    base = flat(recipe("", architecture).to_dict())
    for name in SIZES:
        for budget in BUDGETS:
            point = flat(recipe(f"{name},{budget}n", architecture).to_dict())
            yield {key: value for key, value in point.items() if base.get(key) != value}


def _window(window: int):
    return lambda attention: dict(attention, window=window)


def _recurrent(**settings: Any):
    """Inner sizes that come nearest to attention's parameters."""
    return lambda attention: {
        name: value(attention["heads"]) if callable(value) else value
        for name, value in settings.items()
    }


LOCAL = {
    "full": dict,
    "swa128": _window(128),
    "swa512": _window(512),
    "swa2048": _window(2048),
    "lightning": _recurrent(kind="lightning", heads=lambda heads: heads, head_dim=32),
    "mamba2": _recurrent(
        kind="mamba2", heads=lambda heads: 3 * heads // 4 or 1, head_dim=64, state_dim=64
    ),
    "gdn": _recurrent(kind="gdn", heads=lambda heads: heads, head_dim=32, value_dim=32),
}


def _smoke(c: ConfigDict) -> ConfigDict:
    """Seconds on a CPU, on the bundled text."""
    c.data.sources = dict(
        addresses=dict(kind="jsonl", path="data/corpora/state_of_the_union.jsonl.gz")
    )
    c.model.vocab_size, c.model.mixers.full.heads = None, 2
    if "heads" in c.model.mixers.local:
        c.model.mixers.local.heads = 2
    c.train.dtype, c.train.remat, c.train.keep_every = "auto", "none", None
    c.probes = dict(which=[])
    return recipes.smoke(c)
