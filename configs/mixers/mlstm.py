"""mLSTM three times, full NoPE attention once, on the State of the Union addresses.

xLSTM's matrix memory (arXiv 2405.04517).

Hardware: 2 CPU cores, 150 seconds of CPU time.
Expected: held-out loss of 1.88 nats (2.72 bits per byte).
Run:      hybridlm train --config configs/mixers/mlstm.py --workdir runs/mlstm
"""

from ml_collections import ConfigDict

from hybridlm.config import recipes


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipes.hybrid_with_full_attention(arg, kind="mlstm", heads=4)
