"""Gated short convolutions three times, full NoPE attention once, on the State of the Union addresses.

LFM2's mixer (arXiv 2511.23404): nothing is remembered beyond two tokens.

Hardware: 2 CPU cores, 80 seconds of CPU time.
Expected: held-out loss of 1.48 nats (2.14 bits per byte).
Run:      hybridlm train --config configs/mixers/short_conv.py --workdir runs/short_conv
"""

from ml_collections import ConfigDict

from hybridlm.config import recipes


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipes.hybrid_with_full_attention(arg, kind="short_conv")
