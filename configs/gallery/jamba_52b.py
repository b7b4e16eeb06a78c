"""Jamba 52B (arXiv 2403.19887): seven layers of Mamba to one of attention, experts in every other layer.

Hardware: accelerators with memory for 103 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show jamba_52b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/jamba_52b.py --workdir runs/jamba_52b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Jamba 52B, Jamba 1.5 Mini",
    developer="AI21 Labs",
    released="2024-03",
    source="arXiv 2403.19887; Jamba 1.5: arXiv 2408.12570",
    upstream="ai21labs/Jamba-v0.1",
    context=262_144,
    total="52B",
    active="12B",
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    mamba = dict(kind="mamba1", expand=2, state_dim=16, dt_rank=256, norm="rmsnorm")
    return recipe(
        arg,
        width=4096,
        depth=32,
        pattern="mamba mamba+moe mamba mamba+moe full mamba+moe mamba mamba+moe",
        mixers=dict(mamba=mamba, full=attention(32, 8, 128, rope=None)),
        mlp=dict(kind="swiglu", hidden=14336),
        feedforwards=dict(moe=dict(kind="moe", experts=16, top_k=2, hidden=14336)),
        vocab_size=65_536,
        tie_embeddings=False,
    )
