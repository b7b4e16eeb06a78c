"""RG-LRU three times, full NoPE attention once, on the State of the Union addresses.

Griffin's recurrent block (arXiv 2402.19427).

Hardware: 2 CPU cores, 110 seconds of CPU time.
Expected: held-out loss of 1.69 nats (2.44 bits per byte).
Run:      hybridlm train --config configs/mixers/rglru.py --workdir runs/rglru
"""

from ml_collections import ConfigDict

from hybridlm.config import recipes


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipes.hybrid_with_full_attention(arg, kind="rglru", heads=4)
