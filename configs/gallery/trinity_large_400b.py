"""Trinity Large 400B (arXiv 2602.17004): three layers with a window of 4,096 to one without positions.

Hardware: accelerators with memory for 797 GB of parameters and of optimizer state; `:smoke`: 2 CPU cores, 1 minute.
Expected: the parameters and bytes of its fact sheet (`hybridlm gallery show trinity_large_400b`); no loss is stated.
Run:      hybridlm train --config configs/gallery/trinity_large_400b.py --workdir runs/trinity_large_400b
"""

from ml_collections import ConfigDict

from published import attention, recipe

FACTS = dict(
    title="Trinity Large 400B",
    developer="Arcee AI",
    released="2026-01",
    source="arXiv 2602.17004",
    upstream="arcee-ai/Trinity-Large-Base",
    context=524_288,
    total="398B",
    active="13B",
    cut=True,
    unconfirmed=["the scale of the router's weights"],
)


def get_config(arg: str = "") -> ConfigDict:
    """`arg`: "" or "smoke" (seconds, on any machine)."""
    common = dict(qk_norm=True, output_gate=True)
    router = dict(scores="sigmoid", normalize=True, normalize_eps=1e-20, choice_bias=True)
    moe = dict(kind="moe", experts=256, top_k=4, hidden=3072, shared_hidden=3072, router=router)
    return recipe(
        arg,
        width=3072,
        depth=60,
        prefix="local*3 full local*2 local+moe full+moe",
        pattern="local+moe*3 full+moe",
        mixers=dict(
            local=attention(48, 8, 128, window=4096, rope=dict(theta=10_000.0), **common),
            full=attention(48, 8, 128, rope=None, **common),
        ),
        mlp=dict(kind="swiglu", hidden=12288),
        feedforwards=dict(moe=moe),
        vocab_size=200_192,
        block="sandwich",
        norm_eps=1e-5,
        embedding_scale=3072**0.5,
        tie_embeddings=False,
    )
