"""A byte-level hybrid of 1.2M parameters on the State of the Union addresses.

Layers alternate between sliding-window attention with RoPE, full attention with NoPE, and RG-LRU:
global layers have no positions, and local layers have them (RNoPE-SWA, arXiv 2501.18795).

Hardware: 2 CPU cores, 4 minutes.
Expected: held-out loss of 1.34 nats (1.94 bits per byte); a bigram model has 2.36 nats.
Run:      hybridlm train --config configs/demo.py --workdir runs/demo
"""

from ml_collections import ConfigDict

from common import parse_arg, smoke


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    flags = parse_arg(arg, smoke=False)
    c = ConfigDict()
    c.seed = 0

    c.model = ConfigDict()
    c.model.width, c.model.depth = 128, 6
    c.model.pattern = "swa full rec"
    c.model.mixers = ConfigDict()
    c.model.mixers.swa = dict(kind="attention", heads=4, kv_heads=2, window=64, qk_norm=True)
    c.model.mixers.full = dict(kind="attention", heads=4, kv_heads=2, rope=None, qk_norm=True)
    c.model.mixers.rec = dict(kind="rglru", heads=4)
    c.model.mlp = dict(kind="swiglu", hidden=352)
    c.model.z_loss = 1e-4

    c.data = ConfigDict()
    c.data.sources = dict(
        addresses=dict(kind="jsonl", path="data/corpora/state_of_the_union.jsonl.gz")
    )
    c.data.seq_len, c.data.batch_size = 256, 8
    c.data.bigram_baseline = True

    c.optimizer = dict(lr=3e-3, schedule="cosine", warmup_steps=30, weight_decay=0.1)
    c.train = ConfigDict()
    c.train.steps = 450
    c.train.log_every, c.train.eval_every, c.train.checkpoint_every = 10, 150, 150
    c.train.eval_sequences = 128
    c.sample = dict(prompt="Fellow citizens, ", tokens=300, temperature=0.7)
    return smoke(c) if flags["smoke"] else c
