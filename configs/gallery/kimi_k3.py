"""Kimi K3: three layers of Kimi Delta Attention to one of gated latent attention, 896 experts.

Hardware: accelerators with memory for 5.6 TB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show kimi_k3`); no loss is stated.
Run:      hybridlm train --config configs/gallery/kimi_k3.py --workdir runs/kimi_k3
"""

from ml_collections import ConfigDict

from published import recipe

FACTS = dict(
    title="Kimi K3",
    developer="Moonshot AI",
    released="2026-07",
    source="config.json and tensor list of the published weights, 2026-07; arXiv 2510.26692",
    upstream="moonshotai/Kimi-K3",
    context=1_048_576,
    total="2.8T",
    unsupported=[
        "full-rank output gates of Kimi Delta Attention (here of rank 128)",
        "a gate on the output of latent attention",
        "attention over earlier layers' residuals",
        "a norm of the sum of experts",
        "the activation SiTU (here SiLU)",
        "the vision encoder",
    ],
    left_out={
        "the rest of the output gates of Kimi Delta Attention": 69
        * (12288 * 7168 - 128 * (7168 + 12288)),
        "the gates of latent attention": 24 * 12288 * 7168,
        "attention over residuals": (93 * 4 + 2) * 7168,
        "the norms of sums of experts": 92 * 3584,
    },
    outside={"the vision encoder and its projection": 447_000_000},
    unconfirmed=["the size of the vision encoder, which is rounded"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    kda = dict(kind="kda", heads=96, head_dim=128, lower_bound=-5.0)
    mla = dict(kind="mla", heads=96, q_rank=1536, rope=None, norm_eps=1e-6)
    router = dict(scores="sigmoid", normalize=True, normalize_eps=1e-20, choice_bias=True)
    moe = dict(
        kind="moe",
        experts=896,
        top_k=16,
        hidden=3072,
        latent=3584,
        shared_hidden=6144,
        router=router,
    )
    return recipe(
        arg,
        width=7168,
        depth=93,
        prefix="kda kda+moe*2 mla+moe",
        pattern="kda+moe*3 mla+moe",
        suffix="mla+moe",
        mixers=dict(kda=kda, mla=mla),
        mlp=dict(kind="swiglu", hidden=33792),
        feedforwards=dict(moe=moe),
        vocab_size=163_840,
        norm_eps=1e-5,
        tie_embeddings=False,
    )
