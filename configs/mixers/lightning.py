"""Three layers of Lightning attention and one of full attention with NoPE.

A fixed decay per head (arXiv 2401.04658); MiniMax-01 has 7 to 1.

Data:     the State of the Union addresses, as bytes.
Hardware: 2 CPU cores, 110 seconds of CPU time.
Expected: held-out loss of 2.03 nats (2.93 bits per byte).
Run:      hybridlm train --config configs/mixers/lightning.py --workdir runs/lightning
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
    c.model.mixers.mixer = dict(kind="lightning", heads=4)
    c.model.mixers.full = dict(kind="attention", heads=4, kv_heads=2, rope=None, qk_norm=True)
    c.model.mlp = dict(kind="swiglu", hidden=256)
    return smoke(c) if flags["smoke"] else c
