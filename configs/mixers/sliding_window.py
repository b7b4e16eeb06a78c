"""Three layers of sliding-window attention and one of full attention with NoPE.

RoPE in the local layers, NoPE in the global layer (RNoPE-SWA, arXiv 2501.18795).

Data:     the State of the Union addresses, as bytes.
Hardware: 2 CPU cores, 100 seconds of CPU time.
Expected: held-out loss of 2.01 nats (2.90 bits per byte).
Run:      hybridlm train --config configs/mixers/sliding_window.py --workdir runs/sliding_window
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
    c.model.mixers.mixer = dict(kind="attention", heads=4, kv_heads=2, window=64, qk_norm=True)
    c.model.mixers.full = dict(kind="attention", heads=4, kv_heads=2, rope=None, qk_norm=True)
    c.model.mlp = dict(kind="swiglu", hidden=256)
    return smoke(c) if flags["smoke"] else c
