"""DeltaNet three times, full NoPE attention once, on the State of the Union addresses.

The delta rule without a gate (arXiv 2406.06484).

Hardware: 2 CPU cores, 140 seconds of CPU time.
Expected: held-out loss of 1.93 nats (2.78 bits per byte).
Run:      hybridlm train --config configs/mixers/deltanet.py --workdir runs/deltanet
"""

from ml_collections import ConfigDict

from hybridlm.config import recipes


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipes.hybrid_with_full_attention(arg, kind="deltanet", heads=4, head_dim=32)
