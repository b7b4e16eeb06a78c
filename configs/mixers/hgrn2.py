"""Three HGRN2 layers and one of full attention with NoPE.

Keys are tied to forget gates (arXiv 2404.07904).

Data:     the State of the Union addresses, as bytes.
Hardware: 2 CPU cores, 160 seconds of CPU time.
Expected: held-out loss of 1.71 nats (2.47 bits per byte).
Run:      hybridlm train --config configs/mixers/hgrn2.py --workdir runs/hgrn2
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
    c.model.mixers.mixer = dict(kind="hgrn2", expand=32)
    c.model.mixers.full = dict(kind="attention", heads=4, kv_heads=2, rope=None, qk_norm=True)
    c.model.mlp = dict(kind="swiglu", hidden=256)
    return smoke(c) if flags["smoke"] else c
