"""Chunked-local attention three times, full NoPE attention once, on the State of the Union addresses.

Llama 4's iRoPE: local layers see their chunk, every fourth layer sees all without positions.

Hardware: 2 CPU cores, 90 seconds of CPU time.
Expected: held-out loss of 2.02 nats (2.91 bits per byte).
Run:      hybridlm train --config configs/mixers/chunked_attention.py --workdir runs/chunked_attention
"""

from ml_collections import ConfigDict

from hybridlm.config import recipes


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipes.hybrid_with_full_attention(
        arg, kind="attention", heads=4, kv_heads=2, chunk=64, qk_norm="l2"
    )
