"""Block-sparse attention three times, full NoPE attention once, on the State of the Union addresses.

MoBA (arXiv 2502.13189): the own block of 32 keys and the 3 that match best.

Hardware: 2 CPU cores, 150 seconds of CPU time.
Expected: held-out loss of 2.05 nats (2.96 bits per byte).
Run:      hybridlm train --config configs/mixers/moba.py --workdir runs/moba
"""

from ml_collections import ConfigDict

from hybridlm.config import recipes


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipes.hybrid_with_full_attention(
        arg, kind="moba", heads=4, kv_heads=2, block=32, top_k=4
    )
