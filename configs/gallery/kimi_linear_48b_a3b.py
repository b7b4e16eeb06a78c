"""Kimi Linear 48B-A3B (arXiv 2510.26692): Kimi Delta Attention and latent attention without positions.

Hardware: accelerators with memory for 98 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show kimi_linear_48b_a3b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/kimi_linear_48b_a3b.py --workdir runs/kimi_linear_48b_a3b
"""

from ml_collections import ConfigDict

from published import recipe

FACTS = dict(
    title="Kimi Linear 48B-A3B",
    developer="Moonshot AI",
    released="2025-10",
    source="arXiv 2510.26692",
    upstream="moonshotai/Kimi-Linear-48B-A3B-Instruct",
    context=1_048_576,
    total="48B",
    active="3B",
    total_excludes="embedding and head",
    active_excludes="embedding and head",
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    router = dict(
        scores="sigmoid", normalize=True, normalize_eps=1e-20, scale=2.446, choice_bias=True
    )
    moe = dict(kind="moe", experts=256, top_k=8, hidden=1024, shared_hidden=1024, router=router)
    return recipe(
        arg,
        width=2304,
        depth=27,
        prefix="kda kda+moe*2 mla+moe",
        pattern="kda+moe*3 mla+moe",
        suffix="kda+moe*2 mla+moe",
        mixers=dict(
            kda=dict(kind="kda", heads=32, head_dim=128),
            mla=dict(kind="mla", heads=32, rope=None, norm_eps=1e-6),
        ),
        mlp=dict(kind="swiglu", hidden=9216),
        feedforwards=dict(moe=moe),
        vocab_size=163_840,
        norm_eps=1e-5,
        tie_embeddings=False,
    )
