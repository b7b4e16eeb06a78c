"""Three layers of Native Hybrid Attention and one of full attention with NoPE.

One softmax over 32 slots and a window of 32 (arXiv 2510.07019).

Data:     the State of the Union addresses, as bytes.
Hardware: 2 CPU cores, 200 seconds of CPU time.
Expected: held-out loss of 2.08 nats (3.01 bits per byte).
Run:      hybridlm train --config configs/mixers/nha.py --workdir runs/nha
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
    c.model.mixers.mixer = dict(kind="nha", heads=4, slots=32, window=32)
    c.model.mixers.full = dict(kind="attention", heads=4, kv_heads=2, rope=None, qk_norm=True)
    c.model.mlp = dict(kind="swiglu", hidden=256)
    return smoke(c) if flags["smoke"] else c
