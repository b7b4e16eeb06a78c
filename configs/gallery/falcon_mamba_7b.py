"""Falcon Mamba 7B (arXiv 2410.05355): Mamba alone, with norms of steps, B and C.

Hardware: accelerators with memory for 15 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show falcon_mamba_7b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/falcon_mamba_7b.py --workdir runs/falcon_mamba_7b
"""

from ml_collections import ConfigDict

from published import recipe

FACTS = dict(
    title="Falcon Mamba 7B",
    developer="TII",
    released="2024-08",
    source="arXiv 2410.05355",
    upstream="tiiuae/falcon-mamba-7b",
    context=8192,
    total="7.27B",
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    return recipe(
        arg,
        width=4096,
        depth=64,
        pattern="mamba",
        mixers=dict(
            mamba=dict(kind="mamba1", inner=8192, state_dim=16, norm="unscaled", norm_eps=1e-6)
        ),
        mlp=None,
        vocab_size=65_024,
        norm_eps=1e-5,
        tie_embeddings=False,
    )
