"""Gated linear attention three times, full NoPE attention once, on the State of the Union addresses.

One decay a key channel (GLA, arXiv 2312.06635).

Hardware: 2 CPU cores, 140 seconds of CPU time.
Expected: held-out loss of 2.02 nats (2.91 bits per byte).
Run:      hybridlm train --config configs/mixers/gla.py --workdir runs/gla
"""

from ml_collections import ConfigDict

from hybridlm.config import recipes


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipes.hybrid_with_full_attention(arg, kind="gla", heads=4)
