"""Native hybrid attention three times, full NoPE attention once, on the State of the Union addresses.

One softmax over 32 slots and a window of 32 (arXiv 2510.07019).

Hardware: 2 CPU cores, 200 seconds of CPU time.
Expected: held-out loss of 2.08 nats (3.01 bits per byte).
Run:      hybridlm train --config configs/mixers/nha.py --workdir runs/nha
"""

from ml_collections import ConfigDict

from hybridlm.config import recipes


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipes.hybrid_with_full_attention(arg, kind="nha", heads=4, slots=32, window=32)
