"""The model of the recipes in this folder: Native Hybrid Attention from scratch (arXiv 2510.07019).

This file is not a recipe. `nha_340m.py` and `nha_1_3b.py` set the sizes.
"""

from ml_collections import ConfigDict

from common import parse_arg, smoke

WINDOW, SLOTS = 32, 64  # defaults of the authors' code
TOKENS_A_STEP = 16 * 16 * 2048  # 16 GPUs, 16 sequences each


def scratch(arg: str | None, *, width: int, hidden: int, steps: int) -> ConfigDict:
    """24 layers of 4 heads, a window of 32 and 64 slots, in 2,048 tokens.

    Depth, heads, window, slots, rate, warm-up and batch are the defaults of the authors' code. Hidden
    size, tied embeddings and the cosine are ours: the configs of the paper are not published. The data
    is a placeholder, the bundled text as bytes in a vocabulary of 32,000: set `data.sources` (SlimPajama)
    and `data.tokenizer`.

    Args:
      arg: "", "smoke", "full" (every eighth layer sees all tokens), or both.
      hidden: of the feed-forward.
    """
    flags = parse_arg(arg, smoke=False, full=False)
    c = ConfigDict()
    c.seed = 0

    c.model = ConfigDict()
    c.model.width, c.model.depth = width, 24
    c.model.pattern = "nha*7 full" if flags["full"] else "nha"
    nha = dict(kind="nha", heads=4, slots=SLOTS, rope=dict(theta=1e4))
    c.model.mixers = ConfigDict()
    c.model.mixers.nha = dict(nha, window=WINDOW)
    if flags["full"]:
        c.model.mixers.full = dict(nha, window=None)
    c.model.mlp = dict(kind="swiglu", hidden=hidden)
    c.model.vocab_size = None if flags["smoke"] else 32_000

    c.data = ConfigDict()
    c.data.sources = dict(
        addresses=dict(kind="jsonl", path="data/corpora/state_of_the_union.jsonl.gz")
    )
    c.data.seq_len, c.data.batch_size = 2048, TOKENS_A_STEP // 2048

    c.optimizer = dict(lr=3e-4, schedule="cosine", warmup_steps=1024, weight_decay=0.1)
    c.train = ConfigDict()
    c.train.steps, c.train.remat, c.train.dtype = steps, "full", "auto"
    c.train.log_every, c.train.eval_every, c.train.checkpoint_every = 10, 1000, 1000
    c.train.eval_sequences = 512
    c.mesh = dict(data=-1) if flags["smoke"] else dict(data=1, fsdp=-1)
    return smoke(c) if flags["smoke"] else c
