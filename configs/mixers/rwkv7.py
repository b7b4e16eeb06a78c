"""Three layers of RWKV-7 and one of full attention with NoPE.

The delta rule with a removal key, and feed-forwards that read the token before (arXiv 2503.14456).

Data:     the State of the Union addresses, as bytes.
Hardware: 2 CPU cores, 240 seconds of CPU time.
Expected: held-out loss of 1.68 nats (2.43 bits per byte).
Run:      hybridlm train --config configs/mixers/rwkv7.py --workdir runs/rwkv7
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
    c.model.mixers.mixer = dict(kind="rwkv7", head_dim=32)
    c.model.mixers.full = dict(kind="attention", heads=4, kv_heads=2, rope=None, qk_norm=True)
    c.model.mlp = dict(kind="channel_mix", hidden=384)
    return smoke(c) if flags["smoke"] else c
