"""Three layers of sliding-window attention with learned sinks and one of full attention with NoPE.

The local layers of gpt-oss: a window, and one more logit per head in the softmax's denominator.

Data:     the State of the Union addresses, as bytes.
Hardware: 2 CPU cores, 100 seconds of CPU time.
Expected: held-out loss of 2.02 nats (2.91 bits per byte).
Run:      hybridlm train --config configs/mixers/sinks.py --workdir runs/sinks
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
    c.model.mixers.mixer = dict(kind="attention", heads=4, kv_heads=2, window=64, sinks=True)
    c.model.mixers.full = dict(kind="attention", heads=4, kv_heads=2, rope=None, qk_norm=True)
    c.model.mlp = dict(kind="swiglu", hidden=256)
    return smoke(c) if flags["smoke"] else c
