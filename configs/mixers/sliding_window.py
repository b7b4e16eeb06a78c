"""Sliding-window attention three times, full NoPE attention once, on the State of the Union addresses.

RoPE near, NoPE far (RNoPE-SWA, arXiv 2501.18795).

Hardware: 2 CPU cores, 100 seconds of CPU time.
Expected: held-out loss of 2.01 nats (2.90 bits per byte).
Run:      hybridlm train --config configs/mixers/sliding_window.py --workdir runs/sliding_window
"""

from ml_collections import ConfigDict

from hybridlm.config import recipes


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipes.hybrid_with_full_attention(
        arg, kind="attention", heads=4, kv_heads=2, window=64, qk_norm=True
    )
