"""A dense layer, then mixtures of 16 experts of which a token goes to 2, beside a shared expert.

Sigmoid scores and a bias that balances the load without a loss, as in DeepSeek-V3 (arXiv 2412.19437
sec. 2.1.2). docs/moe.md lists the routers of published models.

Data:     the State of the Union addresses, as bytes.
Hardware: 2 CPU cores, 60 seconds of CPU time.
Expected: held-out loss of 2.00 nats (2.88 bits per byte); `expert_violation` falls from 7 to about 1.
Run:      hybridlm train --config configs/moe.py --workdir runs/moe
"""

from ml_collections import ConfigDict

from common import parse_arg, small_run, smoke


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    flags = parse_arg(arg, smoke=False)
    c = small_run()
    c.model = ConfigDict()
    c.model.width, c.model.depth = 128, 4
    c.model.prefix, c.model.pattern = "swa+dense", "full swa full"
    c.model.mixers = ConfigDict()
    c.model.mixers.swa = dict(kind="attention", heads=4, kv_heads=2, window=64, qk_norm=True)
    c.model.mixers.full = dict(kind="attention", heads=4, kv_heads=2, qk_norm=True)
    router = dict(scores="sigmoid", normalize=True, choice_bias=True, choice_bias_rate=0.003)
    c.model.mlp = dict(
        kind="moe", experts=16, top_k=2, hidden=96, shared_hidden=96, router=router, z_weight=1e-4
    )
    c.model.feedforwards = dict(dense=dict(kind="swiglu", hidden=288))
    return smoke(c) if flags["smoke"] else c
