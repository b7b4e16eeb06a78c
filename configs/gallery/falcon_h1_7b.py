"""Falcon-H1 7B (arXiv 2507.22448): attention and Mamba-2 side by side in every layer.

Hardware: accelerators with memory for 15 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show falcon_h1_7b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/falcon_h1_7b.py --workdir runs/falcon_h1_7b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Falcon-H1 7B",
    developer="TII",
    released="2025-05",
    source="arXiv 2507.22448",
    upstream="tiiuae/Falcon-H1-7B-Base",
    context=262_144,
    total="7.59B",
    unconfirmed=["the constant multipliers of each projection (here 1)"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    mixer = dict(
        kind="parallel",
        combine="sum",
        branches=dict(
            attention=attention(12, 2, 128, rope=dict(theta=100_000_000_000.0)),
            ssm=dict(kind="mamba2", heads=24, head_dim=128, state_dim=256, groups=1, norm="none"),
        ),
    )
    return recipe(
        arg,
        width=3072,
        depth=44,
        pattern="hybrid",
        mixers=dict(hybrid=mixer),
        mlp=dict(kind="swiglu", hidden=12288),
        vocab_size=130_048,
        norm_eps=1e-5,
        tie_embeddings=False,
    )
