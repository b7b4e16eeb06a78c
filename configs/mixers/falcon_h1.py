"""Three layers with attention and Mamba-2 in parallel and one of full attention with NoPE.

Falcon-H1 (arXiv 2507.22448): a layer adds up the outputs of both branches.

Data:     the State of the Union addresses, as bytes.
Hardware: 2 CPU cores, 180 seconds of CPU time.
Expected: held-out loss of 1.56 nats (2.25 bits per byte).
Run:      hybridlm train --config configs/mixers/falcon_h1.py --workdir runs/falcon_h1
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
    c.model.mixers.mixer = dict(
        kind="parallel",
        combine="sum",
        branches=dict(
            attention=dict(kind="attention", heads=4, kv_heads=2),
            ssm=dict(kind="mamba2", head_dim=32, state_dim=32, norm="none"),
        ),
    )
    c.model.mixers.full = dict(kind="attention", heads=4, kv_heads=2, rope=None, qk_norm=True)
    c.model.mlp = dict(kind="swiglu", hidden=256)
    return smoke(c) if flags["smoke"] else c
