"""Three layers of multi-head latent attention and one of full attention with NoPE.

Keys and values come from a latent of 64 numbers per token (DeepSeek-V2, arXiv 2405.04434).

Data:     the State of the Union addresses, as bytes.
Hardware: 2 CPU cores, 130 seconds of CPU time.
Expected: held-out loss of 2.08 nats (2.99 bits per byte).
Run:      hybridlm train --config configs/mixers/mla.py --workdir runs/mla
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
        kind="mla", heads=4, kv_rank=64, qk_nope=32, qk_rope=16, value_dim=32
    )
    c.model.mixers.full = dict(kind="attention", heads=4, kv_heads=2, rope=None, qk_norm=True)
    c.model.mlp = dict(kind="swiglu", hidden=256)
    return smoke(c) if flags["smoke"] else c
