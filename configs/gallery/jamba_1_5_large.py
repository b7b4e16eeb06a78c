"""Jamba 1.5 Large (arXiv 2408.12570): seven layers of Mamba to one of attention, and experts.

Hardware: accelerators with memory for 797 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show jamba_1_5_large`); no loss is stated.
Run:      hybridlm train --config configs/gallery/jamba_1_5_large.py --workdir runs/jamba_1_5_large
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Jamba 1.5 Large",
    developer="AI21 Labs",
    released="2024-08",
    source="arXiv 2408.12570",
    upstream="ai21labs/AI21-Jamba-1.5-Large",
    context=262_144,
    total="398B",
    active="94B",
    cut=True,
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    mamba = dict(kind="mamba1", expand=2, state_dim=16, dt_rank=512, norm="rmsnorm")
    return recipe(
        arg,
        width=8192,
        depth=72,
        pattern="mamba mamba+moe mamba mamba+moe full mamba+moe mamba mamba+moe",
        mixers=dict(mamba=mamba, full=attention(64, 8, 128, rope=None)),
        mlp=dict(kind="swiglu", hidden=24576),
        feedforwards=dict(moe=dict(kind="moe", experts=16, top_k=2, hidden=24576)),
        vocab_size=65_536,
        tie_embeddings=False,
    )
