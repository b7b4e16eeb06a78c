"""Three layers of gated slot attention and one of full attention with NoPE.

Softmax attention over 32 slots per head (arXiv 2409.07146).

Data:     the State of the Union addresses, as bytes.
Hardware: 2 CPU cores, 180 seconds of CPU time.
Expected: held-out loss of 2.10 nats (3.04 bits per byte).
Run:      hybridlm train --config configs/mixers/gsa.py --workdir runs/gsa
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
    c.model.mixers.mixer = dict(kind="gsa", heads=4, slots=32)
    c.model.mixers.full = dict(kind="attention", heads=4, kv_heads=2, rope=None, qk_norm=True)
    c.model.mlp = dict(kind="swiglu", hidden=256)
    return smoke(c) if flags["smoke"] else c
