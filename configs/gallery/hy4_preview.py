"""Hy4 preview: gated sparse latent attention, hyper-connections and 256 experts.

Hardware: accelerators with memory for 117 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show hy4_preview`); no loss is stated.
Run:      hybridlm train --config configs/gallery/hy4_preview.py --workdir runs/hy4_preview
"""

from ml_collections import ConfigDict

from published import recipe

FACTS = dict(
    title="Hy4 preview",
    developer="Tencent",
    released="2026-09",
    source="the class hy_v4 of transformers 5.23, whose default sizes are this model's",
    upstream="tencent/Hy4-preview",
    context=262_144,
    unsupported=[
        "indexers in ten layers that choose 2,048 keys a query, for the next layers too (here every query"
        " attends to all)",
        "a gate on the output of latent attention, and sinks",
        "hyper-connections, four residual streams",
    ],
    left_out={
        "the indexers": 10 * (2048 * 1536 + 128 * 2816 + 256 + 16 * 2816),
        "the gates and sinks": 34 * (8192 * 2816 + 32),
        "the hyper-connections": 34 * 2 * (8 * 11264 + 8 + 2) + 4 * 11264 + 4 + 1,
    },
    unconfirmed=["the total, of which no published figure was found", "the month of publication"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    mla = dict(
        kind="mla",
        heads=32,
        q_rank=1536,
        qk_nope=192,
        value_dim=256,
        norm_eps=1e-6,
        rope=dict(theta=10_000.0, interleaved=True),
    )
    router = dict(
        scores="sigmoid", normalize=True, normalize_eps=1e-20, scale=2.827, choice_bias=True
    )
    moe = dict(
        kind="moe", experts=256, top_k=8, hidden=768, clamp=10.0, shared_hidden=768, router=router
    )
    return recipe(
        arg,
        width=2816,
        depth=34,
        prefix="mla",
        pattern="mla+moe",
        mixers=dict(mla=mla),
        mlp=dict(kind="swiglu", hidden=6912),
        feedforwards=dict(moe=moe),
        vocab_size=120_832,
        norm_eps=1e-5,
        tie_embeddings=False,
    )
