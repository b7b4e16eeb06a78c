"""HGRN2 three times, full NoPE attention once, on the State of the Union addresses.

Keys tied to forget gates (arXiv 2404.07904).

Hardware: 2 CPU cores; minutes.
Expected: not measured yet.
Run:      hybridlm train --config configs/mixers/hgrn2.py --workdir runs/hgrn2
"""

from ml_collections import ConfigDict

from hybridlm.config import recipes


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipes.hybrid_with_full_attention(
        arg,
        kind="hgrn2",
        expand=32,
    )
