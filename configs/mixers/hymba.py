"""Attention and Mamba-2 side by side three times, full NoPE attention once, on the State of the Union addresses.

Hymba (arXiv 2411.13676): the mean of both branches, each normed.

Hardware: 2 CPU cores, 200 seconds of CPU time.
Expected: held-out loss of 1.56 nats (2.25 bits per byte).
Run:      hybridlm train --config configs/mixers/hymba.py --workdir runs/hymba
"""

from ml_collections import ConfigDict

from hybridlm.config import recipes


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipes.hybrid_with_full_attention(
        arg,
        kind="parallel",
        branches=dict(
            swa=dict(kind="attention", heads=4, kv_heads=2, window=64),
            ssm=dict(kind="mamba2", head_dim=32, state_dim=16),
        ),
    )
