"""Lightning attention three times, full NoPE attention once, on the State of the Union addresses.

A fixed decay a head (arXiv 2401.04658), 7 to 1 in MiniMax-01.

Hardware: 2 CPU cores, 110 seconds of CPU time.
Expected: held-out loss of 2.03 nats (2.93 bits per byte).
Run:      hybridlm train --config configs/mixers/lightning.py --workdir runs/lightning
"""

from ml_collections import ConfigDict

from hybridlm.config import recipes


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipes.hybrid_with_full_attention(arg, kind="lightning", heads=4)
