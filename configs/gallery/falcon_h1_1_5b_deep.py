"""Falcon-H1 1.5B-Deep (arXiv 2507.22448): attention and Mamba-2 side by side in every layer.

Hardware: accelerators with memory for 3 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show falcon_h1_1_5b_deep`); no loss is stated.
Run:      hybridlm train --config configs/gallery/falcon_h1_1_5b_deep.py --workdir runs/falcon_h1_1_5b_deep
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Falcon-H1 1.5B-Deep",
    developer="TII",
    released="2025-05",
    source="arXiv 2507.22448",
    upstream="tiiuae/Falcon-H1-1.5B-Deep-Base",
    context=131_072,
    total="1.55B",
    unconfirmed=["the constant multipliers of each projection (here 1)"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    mixer = dict(
        kind="parallel",
        combine="sum",
        branches=dict(
            attention=attention(6, 2, 128, rope=dict(theta=100_000_000_000.0)),
            ssm=dict(kind="mamba2", heads=24, head_dim=64, state_dim=256, groups=1, norm="none"),
        ),
    )
    return recipe(
        arg,
        width=1280,
        depth=66,
        pattern="hybrid",
        mixers=dict(hybrid=mixer),
        mlp=dict(kind="swiglu", hidden=3072),
        vocab_size=65_537,
        norm_eps=1e-5,
        tie_embeddings=False,
    )
