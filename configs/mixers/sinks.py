"""Windowed attention with learned sinks three times, full NoPE attention once, on the State of the Union addresses.

The local layers of gpt-oss: a window and one more logit a head in the softmax's denominator.

Hardware: 2 CPU cores, 100 seconds of CPU time.
Expected: held-out loss of 2.02 nats (2.91 bits per byte).
Run:      hybridlm train --config configs/mixers/sinks.py --workdir runs/sinks
"""

from ml_collections import ConfigDict

from hybridlm.config import recipes


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipes.hybrid_with_full_attention(
        arg, kind="attention", heads=4, kv_heads=2, window=64, sinks=True
    )
