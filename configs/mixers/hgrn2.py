"""HGRN2 three times, full NoPE attention once, on the State of the Union addresses.

Keys tied to forget gates (arXiv 2404.07904).

Hardware: 2 CPU cores, 160 seconds of CPU time.
Expected: held-out loss of 1.71 nats (2.47 bits per byte).
Run:      hybridlm train --config configs/mixers/hgrn2.py --workdir runs/hgrn2
"""

from ml_collections import ConfigDict

from hybridlm.config import recipes


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipes.hybrid_with_full_attention(arg, kind="hgrn2", expand=32)
