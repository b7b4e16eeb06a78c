"""Mamba-2 three times, full NoPE attention once, on the State of the Union addresses.

State-space layers with one decay a head (SSD, arXiv 2405.21060).

Hardware: 2 CPU cores, 170 seconds of CPU time.
Expected: held-out loss of 1.52 nats (2.19 bits per byte).
Run:      hybridlm train --config configs/mixers/mamba2.py --workdir runs/mamba2
"""

from ml_collections import ConfigDict

from hybridlm.config import recipes


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipes.hybrid_with_full_attention(arg, kind="mamba2", head_dim=32, state_dim=32)
