"""Three Mamba-3 layers and one of full attention with NoPE.

State-space layers with the trapezoidal rule, complex states and no short convolution (arXiv 2603.15569);
two inputs a token (MIMO).

Data:     the State of the Union addresses, as bytes.
Hardware: 2 CPU cores, 100 seconds of CPU time.
Expected: held-out loss of 1.73 nats (2.49 bits per byte).
Run:      hybridlm train --config configs/mixers/mamba3.py --workdir runs/mamba3
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
    c.model.mixers.mixer = dict(kind="mamba3", head_dim=32, state_dim=32, rank=2)
    c.model.mixers.full = dict(kind="attention", heads=4, kv_heads=2, rope=None, qk_norm=True)
    c.model.mlp = dict(kind="swiglu", hidden=256)
    return smoke(c) if flags["smoke"] else c
