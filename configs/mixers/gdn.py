"""Gated DeltaNet three times, full NoPE attention once, on the State of the Union addresses.

The delta rule with one decay a head, 3 to 1 (Qwen3-Next, Olmo Hybrid; arXiv 2412.06464).

Hardware: 2 CPU cores, 170 seconds of CPU time.
Expected: held-out loss of 1.70 nats (2.46 bits per byte).
Run:      hybridlm train --config configs/mixers/gdn.py --workdir runs/gdn
"""

from ml_collections import ConfigDict

from hybridlm.config import recipes


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipes.hybrid_with_full_attention(arg, kind="gdn", heads=4, head_dim=32, value_dim=32)
