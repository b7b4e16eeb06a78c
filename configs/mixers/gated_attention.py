"""Three layers of gated sliding-window attention and one of full attention with NoPE.

Attention with an output gate and partial RoPE (Qwen3-Next's attention, arXiv 2505.06708).

Data:     the State of the Union addresses, as bytes.
Hardware: 2 CPU cores, 100 seconds of CPU time.
Expected: held-out loss of 2.14 nats (3.09 bits per byte).
Run:      hybridlm train --config configs/mixers/gated_attention.py --workdir runs/gated_attention
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
        kind="attention",
        heads=4,
        kv_heads=2,
        window=64,
        output_gate=True,
        qk_norm=True,
        rope=dict(fraction=0.25),
    )
    c.model.mixers.full = dict(kind="attention", heads=4, kv_heads=2, rope=None, qk_norm=True)
    c.model.mlp = dict(kind="swiglu", hidden=256)
    return smoke(c) if flags["smoke"] else c
