"""GLM-5 (arXiv 2602.15763): sparse latent attention in all layers, and 256 experts.

Hardware: accelerators with memory for 1.5 TB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show glm_5`); no loss is stated.
Run:      hybridlm train --config configs/gallery/glm_5.py --workdir runs/glm_5
"""

from ml_collections import ConfigDict

from published import recipe

FACTS = dict(
    title="GLM-5, GLM-5.1",
    developer="Z.ai",
    released="2026-02",
    source="arXiv 2602.15763",
    upstream="zai-org/GLM-5",
    context=202_752,
    total="744B",
    active="40B",
    active_excludes="embedding and head",
    unsupported=[
        "the module that predicts further tokens",
    ],
    unconfirmed=["the base of RoPE"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    dsa = dict(
        kind="dsa",
        index_heads=32,
        index_interleaved=True,
        heads=64,
        q_rank=2048,
        qk_nope=192,
        value_dim=256,
        norm_eps=1e-6,
        rope=dict(theta=1_000_000.0, interleaved=True),
    )
    router = dict(
        scores="sigmoid", normalize=True, normalize_eps=1e-20, scale=2.5, choice_bias=True
    )
    moe = dict(kind="moe", experts=256, top_k=8, hidden=2048, shared_hidden=2048, router=router)
    return recipe(
        arg,
        width=6144,
        depth=78,
        prefix="dsa*3",
        pattern="dsa+moe",
        mixers=dict(dsa=dsa),
        mlp=dict(kind="swiglu", hidden=12288),
        feedforwards=dict(moe=moe),
        vocab_size=154_880,
        norm_eps=1e-5,
        tie_embeddings=False,
    )
