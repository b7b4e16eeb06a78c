"""Mamba-2 2.7B (arXiv 2405.21060): state-space layers alone, without attention or feed-forwards.

Hardware: accelerators with memory for 6 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show mamba2_2_7b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/mamba2_2_7b.py --workdir runs/mamba2_2_7b
"""

from ml_collections import ConfigDict

from published import recipe

FACTS = dict(
    title="Mamba-2 2.7B",
    developer="Dao and Gu",
    released="2024-05",
    source="arXiv 2405.21060",
    upstream="state-spaces/mamba2-2.7b",
    context=2048,
    total="2.7B",
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipe(
        arg,
        width=2560,
        depth=64,
        pattern="mamba",
        mixers=dict(mamba=dict(kind="mamba2", heads=80, head_dim=64, state_dim=128, groups=1)),
        mlp=None,
        vocab_size=50_288,
        norm_eps=1e-5,
    )
