"""Ling 3.0 Flash: five layers of Kimi Delta Attention to one of latent attention, 512 experts.

Hardware: accelerators with memory for 249 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show ling_3_flash`); no loss is stated.
Run:      hybridlm train --config configs/gallery/ling_3_flash.py --workdir runs/ling_3_flash
"""

from ml_collections import ConfigDict

from published import recipe

FACTS = dict(
    title="Ling 3.0 Flash",
    developer="Inclusion AI",
    released="2026-08",
    source="the class bailing_hybrid of transformers 5.23, whose default sizes are this model's",
    upstream="inclusionAI/Ling-3.0-Flash",
    context=262_144,
    unsupported=[
        "full-rank projections of both gates of Kimi Delta Attention (here of rank 128)",
        "a gate a head on the output of latent attention",
        "the module that predicts further tokens",
    ],
    left_out={
        "the rest of these projections": 35 * 2 * (4096 * 2560 - 128 * (2560 + 4096)),
        "the gates of latent attention": 7 * 32 * 2560,
    },
    unconfirmed=["the total, of which no published figure was found"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    kda = dict(kind="kda", heads=32, head_dim=128, lower_bound=-5.0)
    mla = dict(kind="mla", heads=32, rope=dict(theta=6_000_000.0, interleaved=True))
    router = dict(
        scores="sigmoid",
        normalize=True,
        normalize_eps=1e-20,
        scale=2.5,
        choice_bias=True,
        groups=8,
        top_groups=4,
    )
    moe = dict(kind="moe", experts=512, top_k=8, hidden=768, shared_hidden=768, router=router)
    return recipe(
        arg,
        width=2560,
        depth=42,
        prefix="kda*2 kda+moe*3 mla+moe",
        pattern="kda+moe*5 mla+moe",
        mixers=dict(kda=kda, mla=mla),
        mlp=dict(kind="swiglu", hidden=6144),
        feedforwards=dict(moe=moe),
        vocab_size=157_184,
        tie_embeddings=False,
    )
