"""Three Mamba layers and one of full attention with NoPE.

State-space layers with a state and decays for each channel (Mamba-1, arXiv 2312.00752), and Jamba's norms.

Data:     the State of the Union addresses, as bytes.
Hardware: 2 CPU cores, some minutes of CPU time.
Expected: a held-out loss near that of `mamba2.py`, 1.52 nats; it was not measured yet.
Run:      hybridlm train --config configs/mixers/mamba1.py --workdir runs/mamba1
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
    c.model.mixers.mixer = dict(kind="mamba1", norm="rmsnorm")
    c.model.mixers.full = dict(kind="attention", heads=4, kv_heads=2, rope=None, qk_norm=True)
    c.model.mlp = dict(kind="swiglu", hidden=256)
    return smoke(c) if flags["smoke"] else c
