"""Three layers of sparse latent attention and one of full attention with NoPE.

A query sees the 64 of its earlier tokens that an indexer of 4 small heads scores highest (DeepSeek-V3.2,
arXiv 2512.02556).

Data:     the State of the Union addresses, as bytes.
Hardware: 2 CPU cores, 80 seconds of CPU time.
Expected: held-out loss of 2.19 nats (3.16 bits per byte).
Run:      hybridlm train --config configs/mixers/dsa.py --workdir runs/dsa
"""

from ml_collections import ConfigDict

from common import parse_arg, small_run, smoke


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    flags = parse_arg(arg, smoke=False)
    c = small_run()
    c.model = ConfigDict()
    c.model.width, c.model.depth, c.model.pattern = 128, 4, "mixer*3 full"
    c.model.mixers = ConfigDict()
    c.model.mixers.mixer = dict(
        kind="dsa",
        heads=4,
        kv_rank=64,
        q_rank=64,
        qk_nope=32,
        qk_rope=16,
        value_dim=32,
        index_heads=4,
        index_dim=32,
        top_k=64,
    )
    c.model.mixers.full = dict(kind="attention", heads=4, kv_heads=2, rope=None, qk_norm=True)
    c.model.mlp = dict(kind="swiglu", hidden=256)
    return smoke(c) if flags["smoke"] else c
