"""GLM-5.3-Flash: three layers of Kimi Delta Attention to one of sparse latent attention, 288 experts.

Hardware: accelerators with memory for 627 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show glm_5_3_flash`); no loss is stated.
Run:      hybridlm train --config configs/gallery/glm_5_3_flash.py --workdir runs/glm_5_3_flash
"""

from ml_collections import ConfigDict

from published import recipe

FACTS = dict(
    title="GLM-5.3-Flash",
    developer="Z.ai",
    released="2026-08",
    source="the class glm5_next of transformers 5.23, whose default sizes are this model's",
    upstream="zai-org/GLM-5.3-Flash",
    context=1_048_576,
    unsupported=["the vision encoder"],
    outside={"the vision encoder": 460_072_448},
    unconfirmed=["the total, of which no published figure was found"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    kda = dict(kind="kda", heads=64, head_dim=128, lower_bound=-5.0)
    dsa = dict(
        kind="dsa",
        heads=64,
        q_rank=1536,
        qk_nope=256,
        qk_rope=0,
        value_dim=256,
        rope=None,
        index_heads=32,
        pool=16,
        index_loss=0.0,
    )
    router = dict(
        scores="sigmoid", normalize=True, normalize_eps=1e-20, scale=2.5, choice_bias=True
    )
    moe = dict(
        kind="moe", experts=288, top_k=8, hidden=2048, clamp=10.0, shared_hidden=2048, router=router
    )
    return recipe(
        arg,
        width=4096,
        depth=45,
        prefix="kda*3 dsa+moe",
        pattern="kda+moe*3 dsa+moe",
        suffix="kda+moe",
        mixers=dict(kda=kda, dsa=dsa),
        mlp=dict(kind="gated", hidden=12288, clamp=10.0),
        feedforwards=dict(moe=moe),
        vocab_size=154_880,
        norm_eps=1e-5,
        tie_embeddings=False,
        streams=dict(count=4),
    )
