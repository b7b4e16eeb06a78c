"""Gated slot attention three times, full NoPE attention once, on the State of the Union addresses.

Softmax attention over 32 slots a head (arXiv 2409.07146).

Hardware: 2 CPU cores, 180 seconds of CPU time.
Expected: held-out loss of 2.10 nats (3.04 bits per byte).
Run:      hybridlm train --config configs/mixers/gsa.py --workdir runs/gsa
"""

from ml_collections import ConfigDict

from hybridlm.config import recipes


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipes.hybrid_with_full_attention(arg, kind="gsa", heads=4, slots=32)
