"""Three layers of Gated DeltaNet-2 and one of full attention with NoPE.

The delta rule with a decay, an erase gate and a write gate per channel (arXiv 2605.22791), 3 to 1.

Data:     the State of the Union addresses, as bytes.
Hardware: 2 CPU cores, 240 seconds of CPU time.
Expected: held-out loss of 1.91 nats (2.75 bits per byte).
Run:      hybridlm train --config configs/mixers/gdn2.py --workdir runs/gdn2
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
    c.model.mixers.mixer = dict(kind="gdn2", heads=4, head_dim=32)
    c.model.mixers.full = dict(kind="attention", heads=4, kv_heads=2, rope=None, qk_norm=True)
    c.model.mlp = dict(kind="swiglu", hidden=256)
    return smoke(c) if flags["smoke"] else c
