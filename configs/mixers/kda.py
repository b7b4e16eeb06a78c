"""Kimi Delta Attention three times, full NoPE attention once, on the State of the Union addresses.

The delta rule with one decay a channel, 3 to 1 with NoPE (Kimi Linear, arXiv 2510.26692).

Hardware: 2 CPU cores, 240 seconds of CPU time.
Expected: held-out loss of 1.88 nats (2.71 bits per byte).
Run:      hybridlm train --config configs/mixers/kda.py --workdir runs/kda
"""

from ml_collections import ConfigDict

from hybridlm.config import recipes


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipes.hybrid_with_full_attention(arg, kind="kda", heads=4, head_dim=32)
