"""Hy4 preview: gated sparse latent attention, indexers for up to four layers each, and 256 experts.

Hardware: accelerators with memory for 1.5 TB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show hy4_preview`); no loss is stated.
Run:      hybridlm train --config configs/gallery/hy4_preview.py --workdir runs/hy4_preview
"""

from ml_collections import ConfigDict

from published import recipe

WIDTH, VALUES, STREAMS = 6144, 64 * 256, 4 * 6144

FACTS = dict(
    title="Hy4 preview",
    developer="Tencent",
    released="2026-09",
    source="config.json of the published weights, as ports of the model state it; the defaults of the"
    " class hy_v4 of transformers are those of another size",
    upstream="tencent/Hy4-preview",
    context=1_048_576,
    total="770B",
    active="49B",
    unsupported=[
        "a gate on the output of latent attention, and sinks",
        "hyper-connections, four residual streams that keep their own sum",
        "shared experts without a clamp (here they have the experts')",
        "the module that predicts a second token",
    ],
    left_out={
        "the gates and sinks": 78 * (VALUES * WIDTH + 64),
        "the hyper-connections": 78 * 2 * (8 * STREAMS + 8 + 2) + 4 * STREAMS + 4 + 1,
    },
    unconfirmed=["the month of publication"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    dsa = dict(
        kind="dsa",
        heads=64,
        q_rank=2048,
        qk_nope=192,
        value_dim=256,
        rope=dict(theta=10_000_000.0, interleaved=True),
        index_heads=32,
        index_interleaved=True,
        norm_eps=1e-6,  # of the latents; the class gives them no epsilon
    )
    router = dict(
        scores="sigmoid", normalize=True, normalize_eps=1e-20, scale=2.827, choice_bias=True
    )
    moe = dict(
        kind="moe",
        experts=256,
        top_k=8,
        hidden=2048,
        clamp=10.0,
        shared_hidden=2048,
        router=router,
    )
    return recipe(
        arg,
        width=WIDTH,
        depth=78,
        prefix="own",
        pattern="own+moe reader+moe*3",
        suffix="own+moe",
        mixers=dict(own=dict(dsa, index_out="indexer"), reader=dict(dsa, index_in="indexer")),
        mlp=dict(kind="swiglu", hidden=18_432),
        feedforwards=dict(moe=moe),
        vocab_size=120_832,
        norm_eps=1e-5,
        tie_embeddings=False,
    )
