"""Hybrids of efficient and full attention, at 16k tokens of context: the matrix of arXiv 2606.15378.

Seven architectures (`LOCAL`) x five sizes (`SIZES`) x six token budgets (`BUDGETS`), with long and
short documents mixed 1:1. The argument names a point, e.g. `swa512,S2,200n,nope,smoke`; `sweep()`
yields the points of one architecture. The recipe reads token shards from data/tokens/long and
data/tokens/short. Write them with `hybridlm tokenize` and one tokenizer of at most 73,448 ids.

The widths of `SIZES`, with heads of 64, 2 key/value heads and an MLP of 2.5 widths, give exactly the
published parameter counts without embeddings (S1 14,999,424, S2 31,470,080, S3 64,901,760, S4
104,427,264); 73,448 untied tokens give the counts with embeddings. For S5 only rounded counts are
published. Optimizer, schedule, batch and RoPE's base are not published: the values here are ours.

Hardware: an accelerator for S1 to S3, a pod for S4 and S5 (--config.mesh.fsdp=...); not timed yet.
Expected: not run here; the paper's S5 at 100B tokens has RULER 16K of 46.13 with windows of 128.
Run:      hybridlm train --config configs/laziness.py:swa128,S1,100n --workdir runs/swa128-S1-100n
Sweep:    hybridlm sweep --config configs/laziness.py:swa128 --root runs/swa128
All:      python -m experiments.large_window_laziness.sweep --workdir runs/matrix --print_commands
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from common import smoke
from hybridlm.errors import ConfigError
from hybridlm.settings.plain import flat

CONTEXT, VOCAB, KV_HEADS, HEAD_DIM = 16_384, 73_448, 2, 64
BUDGETS = (100, 200, 300, 400, 500, 1000)  # tokens a parameter
FLAGS = ("nope", "smoke")


class Size(NamedTuple):
    """A model's shape, its learning rate, and sequences in a batch."""

    width: int
    depth: int
    lr: float
    batch: int
    params: int  # without embeddings, as published; for S5 computed from the shape


SIZES = {
    "S1": Size(384, 10, 2e-3, 16, 14_999_424),
    "S2": Size(512, 12, 1.5e-3, 16, 31_470_080),
    "S3": Size(640, 16, 1e-3, 32, 64_901_760),
    "S4": Size(768, 18, 1e-3, 32, 104_427_264),
    "S5": Size(1280, 30, 5e-4, 64, 476_852_480),
}

# Settings of the efficient layers, made from the settings `a` of the full layers. The inner sizes of
# recurrent mixers are those whose parameters come nearest to attention's.
LOCAL = {
    "full": lambda a: dict(a),
    "swa128": lambda a: dict(a, window=128),
    "swa512": lambda a: dict(a, window=512),
    "swa2048": lambda a: dict(a, window=2048),
    "lightning": lambda a: dict(kind="lightning", heads=a["heads"], head_dim=32),
    "mamba2": lambda a: dict(
        kind="mamba2", heads=3 * a["heads"] // 4 or 1, head_dim=64, state_dim=64
    ),
    "gdn": lambda a: dict(kind="gdn", heads=a["heads"], head_dim=32, value_dim=32),
}


def get_config(arg: str = "") -> ConfigDict:
    """A point of the matrix.

    Args:
      arg: separated by commas, in any order: an architecture of `LOCAL`, a size ("S1" to "S5") and
        a token budget ("100n" to "1000n"), by default the first of each; "nope" (no RoPE in the full
        layers); "smoke" (seconds, on any machine, on the bundled text).
    """
    architecture, sizes, budgets, flags = _parse(arg)
    return _point(architecture, sizes[0], budgets[0], flags)


def sweep(arg: str = "") -> Iterator[dict[str, Any]]:
    """Flat overrides of `get_config(arg)` for each size and budget, or only for those that `arg` names."""
    architecture, sizes, budgets, flags = _parse(arg)
    base = flat(get_config(arg).to_dict())
    for size in sizes:
        for budget in budgets:
            point = flat(_point(architecture, size, budget, flags).to_dict())
            yield {key: value for key, value in point.items() if base.get(key) != value}


def _parse(arg: str | None) -> tuple[str, Sequence[str], Sequence[int], Sequence[str]]:
    """Architecture, sizes, budgets and flags of an argument; all sizes if it names none."""
    words = [word for word in (arg or "").split(",") if word]
    of_budget = {f"{budget}n": budget for budget in BUDGETS}
    axes = (LOCAL, SIZES, of_budget)
    known = {word for names in (*axes, FLAGS) for word in names}
    named = [[word for word in words if word in axis] for axis in axes]
    if not known.issuperset(words) or any(len(names) > 1 for names in named):
        choices = ", ".join(f"one of {', '.join(axis)}" for axis in axes)
        raise ConfigError(f"argument {arg!r}: give at most {choices}, {', '.join(FLAGS)}")
    architectures, sizes, budgets = (names or list(axis) for names, axis in zip(named, axes))
    flags = [word for word in words if word in FLAGS]
    return architectures[0], sizes, [of_budget[name] for name in budgets], flags


def _point(architecture: str, size_name: str, budget: int, flags: Sequence[str]) -> ConfigDict:
    size = SIZES[size_name]
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
    c.data.sources = dict(
        long=dict(kind="tokens", path="data/tokens/long", weight=1.0),
        short=dict(kind="tokens", path="data/tokens/short", weight=1.0),
    )
    c.data.seq_len, c.data.batch_size = CONTEXT, size.batch
    c.train = ConfigDict()
    c.train.steps = -(-budget * size.params // (CONTEXT * size.batch))
    c.train.dtype, c.train.remat = "bfloat16", "full"
    c.train.log_every, c.train.eval_every, c.train.checkpoint_every = 20, 1000, 500
    # Keeps intermediate checkpoints, to measure heads and Q/K distances on them.
    c.train.keep_every = max(500, c.train.steps // 20 // 500 * 500)
    c.optimizer = dict(lr=size.lr, schedule="wsd", warmup_steps=min(500, c.train.steps // 10))
    c.optimizer.decay_steps, c.optimizer.weight_decay = c.train.steps // 10, 0.1
    c.mesh = dict(data=-1, fsdp=1)
    c.probes = dict(which=["heads"], interval=500)
    return _smoke(c) if "smoke" in flags else c


def _smoke(c: ConfigDict) -> ConfigDict:
    """Shrinks the recipe to seconds on a CPU, on the bundled text."""
    c.data.sources = dict(
        addresses=dict(kind="jsonl", path="data/corpora/state_of_the_union.jsonl.gz")
    )
    c.model.vocab_size, c.model.mixers.full.heads = None, 2
    if "heads" in c.model.mixers.local:
        c.model.mixers.local.heads = 2
    c.train.dtype, c.train.remat, c.train.keep_every = "auto", "none", None
    c.probes = dict(which=[])
    return smoke(c)
