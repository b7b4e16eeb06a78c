"""Three layers of attention with forget gates and one of full attention with NoPE.

Data-dependent forget gates in softmax attention, without RoPE (Forgetting Transformer, arXiv 2503.02130).

Data:     the State of the Union addresses, as bytes.
Hardware: 2 CPU cores, 60 seconds of CPU time.
Expected: held-out loss of 1.72 nats (2.47 bits per byte).
Run:      hybridlm train --config configs/mixers/forgetting_attention.py --workdir runs/forgetting_attention
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
        kind="attention", heads=4, kv_heads=2, rope=None, qk_norm=True, forget_gate=True
    )
    c.model.mixers.full = dict(kind="attention", heads=4, kv_heads=2, rope=None, qk_norm=True)
    c.model.mlp = dict(kind="swiglu", hidden=256)
    return smoke(c) if flags["smoke"] else c
