"""Three Gated DeltaNet layers and one of full attention with NoPE.

The delta rule with one decay per head, 3 to 1 (Qwen3-Next, Olmo Hybrid; arXiv 2412.06464).

Data:     the State of the Union addresses, as bytes.
Hardware: 2 CPU cores, 170 seconds of CPU time.
Expected: held-out loss of 1.70 nats (2.46 bits per byte).
Run:      hybridlm train --config configs/mixers/gdn.py --workdir runs/gdn
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
    c.model.mixers.mixer = dict(kind="gdn", heads=4, head_dim=32, value_dim=32)
    c.model.mixers.full = dict(kind="attention", heads=4, kv_heads=2, rope=None, qk_norm=True)
    c.model.mlp = dict(kind="swiglu", hidden=256)
    return smoke(c) if flags["smoke"] else c
